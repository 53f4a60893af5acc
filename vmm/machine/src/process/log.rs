//! Log lines on standard error, few enough that no guest can flood them.

use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};

use super::say::{say, settle, without_waiting};
use super::signals::Signals;
use crate::lock::lock;
use levy_protocol::printable;

/// Lines per [`WINDOW`] at most.
const MOST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

struct Stderr {
    name: String,
    window: Mutex<Window>,
}

struct Window {
    began: Instant,
    lines: u32,
}

impl Window {
    /// Whether one more line is allowed, and how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u32> {
        let mut missed = 0;
        if now.duration_since(self.began) >= WINDOW {
            missed = self.lines.saturating_sub(MOST);
            *self = Self { began: now, lines: 0 };
        }
        self.lines = self.lines.saturating_add(1);
        (self.lines <= MOST).then_some(missed)
    }
}

impl Log for Stderr {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let admitted = lock(&self.window).admit(Instant::now());
        let Some(missed) = admitted else { return };
        if missed > 0 {
            say(format_args!(
                "{}: {missed} more messages were left out",
                self.name
            ));
        }
        let line = record.args().to_string();
        say(format_args!("{}: {}", self.name, printable(&line)));
    }

    fn flush(&self) {
        settle();
    }
}

/// Sends log lines to standard error, with `name` (the guest's) before each. What a guest can cause is limited to 20
/// lines in 10 seconds.
///
/// From then on no thread of this process waits for standard error. A thread of its own writes what is logged and what
/// is [said](say); where that is not taken it is dropped and counted. End signals are blocked before: they are for the
/// thread that waits for them.
///
/// # Errors
/// When the host refuses a thread or a descriptor.
pub fn log_to_stderr(name: &str, _blocked: &Signals) -> io::Result<()> {
    without_waiting()?;
    let logger = Stderr {
        name: name.to_owned(),
        window: Mutex::new(Window {
            began: Instant::now(),
            lines: 0,
        }),
    };
    // A second logger is refused, which leaves the first: fine.
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let began = Instant::now();
        let mut window = Window { began, lines: 0 };
        let admitted = (0..1000).filter(|_| window.admit(began).is_some()).count();
        assert_eq!(admitted, 20);
        assert_eq!(window.admit(began + WINDOW), Some(980));
    }
}
