//! What a launch shows while it goes on.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use super::allowance::{Allowance, Rate};
use super::launch_event::LaunchEvent;
use super::summary::{self, Summary};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use levy_machine::process::say;
use levy_protocol::printable;

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
    /// Standard output.
    out: Box<dyn Write>,
    /// Why something that was to be shown there was not, where its reader wanted it.
    lost: Option<io::Error>,
    bars: Option<MultiProgress>,
    lines: Vec<GuestLine>,
}

/// What is shown of one guest.
struct GuestLine {
    bar: ProgressBar,
    shown: String,
    /// Of lines that stay: a guest can change its state as often as it likes.
    allowance: Allowance,
}

/// Lines about one guest.
const LINES: Rate = Rate {
    burst: 30.0,
    per_second: 1.0,
};

impl Screen {
    /// An empty screen.
    pub fn new(style: ScreenStyle) -> Self {
        Self::on(style, Box::new(io::stdout()))
    }

    fn on(style: ScreenStyle, out: Box<dyn Write>) -> Self {
        let live = style == ScreenStyle::Text && io::stderr().is_terminal();
        Self {
            style,
            out,
            lost: None,
            bars: live.then(MultiProgress::new),
            lines: Vec::new(),
        }
    }

    /// Something about the launch as a whole.
    pub fn say(&self, text: &str) {
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(format!("levy: {}", printable(text)));
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
        self.lines.push(GuestLine {
            bar,
            shown: String::new(),
            allowance: Allowance::new(LINES, Instant::now()),
        });
    }

    /// What guest number `guest` does now.
    pub(super) fn state(&mut self, guest: usize, name: &str, state: &str) {
        let live = self.bars.is_some();
        let Some(GuestLine {
            bar,
            shown,
            allowance,
        }) = self.lines.get_mut(guest)
        else {
            return;
        };
        let state = &summary::shown(state);
        if shown == state {
            return;
        }
        bar.set_message(state.clone());
        // Without a terminal each state is a line; figures that change every second are not states.
        let stage = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
        if !live
            && self.style == ScreenStyle::Text
            && (stage(shown) != stage(state) || !state.contains("/s"))
            && let Some(missed) = allowance.take(1.0, Instant::now())
        {
            if missed > 0 {
                say(format_args!("{name}: {missed} more states were left out"));
            }
            say(format_args!("{name}: {state}"));
        }
        state.clone_into(shown);
    }

    /// A guest has ended.
    pub(super) fn done(&mut self, guest: usize, text: &str) {
        if let Some(GuestLine { bar, .. }) = self.lines.get(guest) {
            bar.finish_with_message(summary::shown(text));
        }
    }

    /// A line for programs.
    pub(super) fn event(&mut self, event: &LaunchEvent) {
        if self.style == ScreenStyle::Json {
            self.print(&format!("{event}\n"));
        }
    }

    /// The end.
    ///
    /// # Errors
    /// When something could not be shown on standard output. A reader that has closed its end had what it wanted.
    pub(super) fn finish(&mut self, summary: &Summary) -> io::Result<()> {
        match self.style {
            ScreenStyle::Text => self.print(&summary.to_text()),
            ScreenStyle::Json => self.event(&LaunchEvent::Summary(summary.clone())),
        }
        self.lost.take().map_or(Ok(()), Err)
    }

    /// A reader that no longer listens, and a full disk, do not stop the guests.
    fn print(&mut self, text: &str) {
        let printed = self.out.write_all(text.as_bytes());
        if let Err(error) = printed.and_then(|()| self.out.flush())
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            self.lost.get_or_insert(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_cannot_be_shown_is_an_error_at_the_end_unless_its_reader_has_gone() {
        for style in [ScreenStyle::Text, ScreenStyle::Json] {
            let full = || File::options().write(true).open("/dev/full").unwrap();
            let mut screen = Screen::on(style, Box::new(full()));
            let lost = screen.finish(&Summary::default()).unwrap_err();
            assert_eq!(lost.kind(), io::ErrorKind::StorageFull);
            let (_, closed) = io::pipe().unwrap();
            let mut screen = Screen::on(style, Box::new(closed));
            screen.finish(&Summary::default()).unwrap();
        }
        let mut screen = Screen::on(ScreenStyle::Json, Box::new(Once(false)));
        screen.event(&LaunchEvent::Summary(Summary::default()));
        assert!(screen.finish(&Summary::default()).is_err(), "an event was lost");
    }

    /// Takes nothing the first time, and then everything.
    struct Once(bool);

    impl Write for Once {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match std::mem::replace(&mut self.0, true) {
                false => Err(io::ErrorKind::StorageFull.into()),
                true => Ok(bytes.len()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
