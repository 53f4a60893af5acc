//! What belongs to a process rather than to a guest: signals, its parent, socket files, what it says.

mod held_dir;
mod keyboard;
mod limits;
mod log;
mod parent;
mod report;
mod signals;
mod socket;

pub use held_dir::HeldDir;
pub use keyboard::forward_stdin;
pub use limits::{cure, not_started, raise_open_files};
pub use log::log_to_stderr;
pub use parent::die_with;
pub use report::{Report, ReportStyle, chain};
pub use signals::{Signals, block_end_signals};
pub use socket::{SocketError, SocketFile};
