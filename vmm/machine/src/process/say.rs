//! What a process tells people, on standard error.
//!
//! Whatever becomes of standard error, the process goes on: a full disk under a log, a `tee` that Ctrl-C ended first.
//! Where guests depend on the process it does not even wait: see [`log_to_stderr`](super::log_to_stderr).

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use crate::confine::Role;
use crate::outlet::{Lost, Manner, Outlet};
use levy_protocol::printable;

/// Lines that wait while standard error takes nothing.
const MANNER: Manner = Manner {
    name: "log",
    role: Role::Stream,
    most: 64 << 10,
    note,
};

/// How long a process that ends waits until its last lines are taken.
const LAST: Duration = Duration::from_secs(1);

/// Where lines go in a process that must not wait for standard error.
static OUTLET: OnceLock<Outlet> = OnceLock::new();

fn note(lost: Lost) -> String {
    format!(
        "levy: {} lines are missing here, standard error did not take them\n",
        lost.pieces
    )
}

/// Says `text`. Other processes may have chosen its words: control characters are written out, and further lines are
/// indented, so that none passes for a line of this process.
pub fn say(text: impl Display) {
    let line = line(&text.to_string());
    match OUTLET.get() {
        Some(outlet) => outlet.push(line.as_bytes()),
        // There is no better place to say that this failed.
        None => drop(io::stderr().write_all(line.as_bytes())),
    }
}

fn line(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().split('\n').map(printable).collect();
    format!("levy: {}\n", lines.join("\n  "))
}

/// Waits a moment until what was said is written: the process is about to end.
pub fn settle() {
    if let Some(outlet) = OUTLET.get() {
        outlet.settle(Some(LAST));
    }
}

/// From now on lines are written by a thread of their own.
pub(super) fn without_waiting() -> io::Result<()> {
    // A handle of its own: that of the standard library has a lock, at which other threads would wait.
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    // A second one ends again: the first stays.
    let _ = OUTLET.set(Outlet::start(MANNER, Box::new(stderr))?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_processes_words_look_like_no_line_of_this_one() {
        assert_eq!(
            line("guest \u{1b}[2J: a\nlevy: host: b\n"),
            "levy: guest \\u{1b}[2J: a\n  levy: host: b\n"
        );
    }
}
