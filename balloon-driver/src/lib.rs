//! A complete virtio-balloon device backend, driver half and controller for rust-vmm projects.
mod chain;
mod config;
pub mod controller;
mod counters;
mod device;
pub mod driver;
pub mod features;
mod frame;
mod frame_set;
mod interrupt;
mod queues;
pub mod release;
mod ring;
mod state;
mod statistics;
mod store;

pub use config::{
    ACTUAL_OFFSET, CONFIG_SIZE, HINT_COMMAND_OFFSET, HINT_DONE, HINT_STOP, POISON_OFFSET, TARGET_OFFSET,
};
pub use counters::Counters;
pub use device::{
    ActivateError, Balloon, DeviceError, Offer, Options, Progress, QUEUE_SIZE, StatisticsRequest,
};
pub use frame::{FRAME_SIZE, Frame, Run, merge_frames, merge_runs};
pub use frame_set::FrameSet;
pub use interrupt::Interrupt;
pub use release::Release;
pub use ring::RingError;
pub use state::{BalloonState, BrokenState, DriverState};
pub use statistics::{STATISTIC_SIZE, Statistics, Values, encode};
