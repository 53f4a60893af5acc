//! Log lines that would say the same again: said once, then counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time for which the same is not said again.
const WINDOW: Duration = Duration::from_secs(60);

/// Lines that are remembered before those that have not come for a [`WINDOW`] are forgotten.
const REMEMBERED: usize = 256;

/// What was said lately.
#[derive(Debug, Default)]
pub(super) struct Repeats(BTreeMap<String, Said>);

#[derive(Debug)]
struct Said {
    said: Instant,
    /// How often it came since then.
    again: u32,
}

impl Repeats {
    /// `line` as it is said at `now`, with a count where it came before and was not said; `None` where it is not said.
    pub(super) fn admit(&mut self, line: &str, now: Instant) -> Option<String> {
        let lately = |said: &Said| now.saturating_duration_since(said.said) < WINDOW;
        if let Some(said) = self.0.get_mut(line) {
            if lately(said) {
                said.again = said.again.saturating_add(1);
                return None;
            }
            let again = std::mem::replace(&mut said.again, 0);
            said.said = now;
            return Some(match again {
                0 => line.to_owned(),
                _ => format!("{line} ({again} times more since this was last said)"),
            });
        }
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, said| lately(said));
        }
        if self.0.len() < REMEMBERED {
            self.0.insert(line.to_owned(), Said { said: now, again: 0 });
        }
        Some(line.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_and_counted_and_another_cause_is_said_at_once() {
        let (now, mut repeats) = (Instant::now(), Repeats::default());
        assert_eq!(repeats.admit("a: it broke", now).as_deref(), Some("a: it broke"));
        for second in 1..=7 {
            let then = now + Duration::from_secs(second);
            assert_eq!(repeats.admit("a: it broke", then), None);
        }
        assert_eq!(repeats.admit("b: it broke", now).as_deref(), Some("b: it broke"));
        assert_eq!(
            repeats.admit("a: it broke", now + WINDOW).as_deref(),
            Some("a: it broke (7 times more since this was last said)")
        );
        assert_eq!(
            repeats.admit("a: it broke", now + WINDOW * 2).as_deref(),
            Some("a: it broke")
        );
    }

    #[test]
    fn no_more_is_remembered_than_has_room() {
        let (now, mut repeats) = (Instant::now(), Repeats::default());
        for number in 0..REMEMBERED * 2 {
            assert!(repeats.admit(&number.to_string(), now).is_some());
        }
        assert_eq!(repeats.0.len(), REMEMBERED);
        assert!(repeats.admit("new", now + WINDOW).is_some());
        assert_eq!(repeats.0.len(), 1);
    }
}
