//! What a bench shows while it goes on.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use levy_machine::process::say;

/// Without a terminal, a line so often.
const EVERY: Duration = Duration::from_secs(10);

/// One line on standard error: live on a terminal, now and then elsewhere.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    shown: Instant,
}

impl Progress {
    /// An empty line.
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            bar,
            shown: Instant::now(),
        }
    }

    /// A step of the bench: a line that stays.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("levy: {text}")),
            None => say(text),
        }
    }

    /// What goes on now: replaces the line before.
    pub(super) fn state(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None if self.shown.elapsed() >= EVERY => {
                self.shown = Instant::now();
                say(text);
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
