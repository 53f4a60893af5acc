//! The machine: KVM, vCPUs, and what answers their accesses.
//!
//! Built in steps, each taking the result of the one before: [`Vm`] (KVM and guest RAM), [`Devices`] (the bus and
//! everything on it), boot ([`crate::boot`]), [`Vcpus`] (threads, started paused).

mod bus;
mod devices;
mod kvm;
mod pause;
mod power;
mod serial;
mod serial_log;
mod vcpu;

pub use bus::Bus;
pub(crate) use devices::Builder;
pub use devices::{DeviceError, Devices, Handles};
pub use kvm::{HostError, Vm, most_vcpus, open_kvm};
pub use serial::{ConsoleOut, SerialInput};
pub use serial_log::{MOST as SERIAL_LOG_BYTES, SerialLog};
pub use vcpu::{Registers, VcpuError, Vcpus};
