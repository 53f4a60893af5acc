//! What belongs to a process rather than to a guest: signals, its parent, socket files, what it says.

mod keyboard;
mod log;
mod parent;
mod report;
mod say;
mod signals;

pub use keyboard::forward_stdin;
pub use log::log_to_stderr;
pub use parent::die_with;
pub use report::{Report, ReportStyle};
pub use say::{say, settle};
pub use signals::{Signals, block_end_signals, outlive_file_limits};
