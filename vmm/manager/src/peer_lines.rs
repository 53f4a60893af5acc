//! What the log says about guests' processes, few enough that none of them silences the manager.
//!
//! The log as a whole is limited too. Lines about peers, which a hostile process can cause without end, have an
//! allowance of their own that is smaller: there is always room for what the manager has to say of itself.

use std::time::{Duration, Instant};

/// Lines about all guests' processes in a [`WINDOW`] at most.
const MOST: u32 = 10;

/// See [`MOST`].
const WINDOW: Duration = Duration::from_secs(10);

/// How many lines there were lately.
#[derive(Debug, Default)]
pub(super) struct PeerLines {
    began: Option<Instant>,
    lines: u32,
}

impl PeerLines {
    /// Whether one more line is allowed at `now`, and how many were left out before it.
    pub(super) fn admit(&mut self, now: Instant) -> Option<u32> {
        let mut missed = 0;
        if self.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            missed = self.lines.saturating_sub(MOST);
            (self.began, self.lines) = (Some(now), 0);
        }
        self.lines = self.lines.saturating_add(1);
        (self.lines <= MOST).then_some(missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_peers_cause_is_cut_and_counted() {
        let (began, mut lines) = (Instant::now(), PeerLines::default());
        let admitted = (0..1000).filter(|_| lines.admit(began).is_some()).count();
        assert_eq!(admitted, MOST as usize);
        assert_eq!(lines.admit(began + WINDOW), Some(990));
        assert_eq!(lines.admit(began + WINDOW), Some(0));
    }
}
