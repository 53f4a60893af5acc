//! Do real guests hold what the crates promise? This crate starts them the way users do and asks the agent inside.
//!
//! - [`Lab`] is a machine that can run them, with everything they need already built; [`Lab::or_skip`] prints why there
//!   is none.
//! - [`Guest`] is a running `levy vmm`. Every wait is for a state that the agent or the process reports, with a deadline
//!   that only a hang reaches; nothing here sleeps for a time and hopes.
//! - [`Manager`] is a `levy host` for guests to be started under ([`Lab::manager`], [`Plan::managed_by`]).
//! - [`Launch`] is a `levy run`, manager and all.
//! - [`Ended`] is how a guest went, [`Verdict`] what a workload inside it found.
//!
//! A test is five lines:
//!
//! ```no_run
//! use levy_tests::Lab;
//!
//! let Some(lab) = Lab::or_skip() else { return };
//! let mut guest = lab.guest("example").memory_mib(256).start();
//! guest.ready();
//! let churn = guest.run("churn mib=32 seconds=2");
//! assert!(guest.verdict(churn).ok);
//! assert_eq!(guest.power_off().status, 0);
//! ```
//!
//! # Invariants
//! 1. A guest that is dropped is killed and waited for: a failing test leaves no process.
//! 2. A failure shows the events and the end of the console of the guest that it is about.
//! 3. A guest that stalls, runs out of memory or oopses fails its test even if its workload did well, unless the test
//!    says that it wants that.
//! 4. Every function panics, which fails its test, where what it asks or waits for does not come about.
//!
//! The tests themselves are in `tests/`, one file per subject; `cargo xtask test` builds what they need and runs them,
//! on this machine or in the nested host.
#![forbid(unsafe_code)]

mod console;
mod guest;
mod lab;
mod launch;
mod left;
mod runs;
mod spawn;
mod turn;

pub use guest::{Ended, Guest, PATIENCE};
pub use guest_images::agent_protocol::Verdict;
pub use lab::Lab;
pub use launch::Launch;
pub use left::{NOTHING, files_in};
pub use simulated::{Footprint, Manager, SmallDisk, until};
pub use spawn::Plan;
pub use turn::{Turn, turn};
