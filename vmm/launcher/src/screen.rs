//! What a launch shows while it goes on.

use std::io::{self, IsTerminal, Write};

use super::launch_event::LaunchEvent;
use super::summary::Summary;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use levy_machine::process::say;

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScreenStyle {
    /// A line per guest on standard error, kept up to date on a terminal; a table on standard output at the end.
    Text,
    /// A JSON object per line on standard output.
    Json,
}

/// The launch's output.
pub struct Screen {
    style: ScreenStyle,
    bars: Option<MultiProgress>,
    lines: Vec<(ProgressBar, String)>,
}

impl Screen {
    /// An empty screen.
    pub fn new(style: ScreenStyle) -> Self {
        let live = style == ScreenStyle::Text && io::stderr().is_terminal();
        Self {
            style,
            bars: live.then(MultiProgress::new),
            lines: Vec::new(),
        }
    }

    /// Something about the launch as a whole.
    pub fn say(&self, text: &str) {
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(format!("levy: {text}"));
            }
            None => say(text),
        }
    }

    /// A guest more.
    pub(super) fn add(&mut self, name: &str) {
        let bar = match &self.bars {
            Some(bars) => bars.add(ProgressBar::new_spinner()),
            None => ProgressBar::hidden(),
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix:12} {elapsed:>4} {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        self.lines.push((bar, String::new()));
    }

    /// What guest number `guest` does now.
    pub(super) fn state(&mut self, guest: usize, name: &str, state: &str) {
        let live = self.bars.is_some();
        let Some((bar, shown)) = self.lines.get_mut(guest) else {
            return;
        };
        if shown == state {
            return;
        }
        bar.set_message(state.to_owned());
        // Without a terminal each state is a line; figures that change every second are not states.
        let stage = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
        if !live && self.style == ScreenStyle::Text && (stage(shown) != stage(state) || !state.contains("/s"))
        {
            say(format_args!("{name}: {state}"));
        }
        state.clone_into(shown);
    }

    /// A guest has ended.
    pub(super) fn done(&mut self, guest: usize, text: &str) {
        if let Some((bar, _)) = self.lines.get(guest) {
            bar.finish_with_message(text.to_owned());
        }
    }

    /// A line for programs.
    pub(super) fn event(&self, event: &LaunchEvent) {
        if self.style == ScreenStyle::Json {
            // A reader that no longer listens does not stop the guests.
            let _ = writeln!(io::stdout(), "{event}");
        }
    }

    /// The end.
    pub(super) fn finish(&self, summary: &Summary) {
        match self.style {
            ScreenStyle::Text => {
                let _ = write!(io::stdout(), "{}", summary.to_text());
            }
            ScreenStyle::Json => self.event(&LaunchEvent::Summary(summary.clone())),
        }
    }
}
