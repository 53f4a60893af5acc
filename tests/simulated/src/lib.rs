//! How does a manager fare with many guests, where no machine runs guests?
//!
//! A guest's process consists of a VMM, and what a manager has to do with: managed memory, and a manager client that speaks
//! the protocol. Here are processes that have the second part only. Instead of a guest, writers of their own
//! work on the memory, and know at any time what each page must hold.
//!
//! - [`Guest`] and [`Manager`] are such a guest and a `levy host`, as processes seen by a test.
//! - [`SmallDisk`] is a place that is soon full, [`ThreadLimit`] a process that gets no further threads.
//! - [`Command`] is what these processes run: a program that calls [`Command::run_arguments`] can be both.
//!
//! ```no_run
//! use simulated::{Guest, GuestOptions, Manager};
//!
//! let program = std::path::Path::new("target/debug/simulated");
//! let mut manager = Manager::start(program, 256);
//! let mut guest = Guest::start(program, manager.dir(), GuestOptions::new("g1"));
//! manager.kill();
//! assert_eq!(guest.check().wrong, 0);
//! ```
//!
//! # Invariants
//! 1. A process that is dropped is killed and waited for, and ends by itself when the process that started it is gone.
//! 2. A page is wrong when any of its words is not what its writer left there: the writers look at each visit, and
//!    [`Guest::check`] at all pages.
//! 3. What a test calls panics, which fails the test, where it does not come about within [`PATIENCE`].
#![forbid(unsafe_code)]

// The same contents as in the tests of the library itself.
#[path = "../../../page-share/tests/contents/mod.rs"]
mod contents;
mod guest;
mod manager;
mod memory;
mod options;
mod process;
mod protocol;
mod relay;
mod small_disk;
mod thread_limit;
mod writers;

pub use guest::{Checked, Guest, Said, Status};
pub use manager::{Footprint, Manager};
pub use options::{Command, GuestOptions};
pub use protocol::ProtocolOptions;
pub use relay::RelayOptions;
pub use small_disk::SmallDisk;
pub use thread_limit::ThreadLimit;

use std::time::{Duration, Instant};

/// No wait is longer, on busy machines neither; one that gets there is a hang.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Waits until `done`.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < PATIENCE,
            "{what} did not happen within {} s",
            PATIENCE.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
