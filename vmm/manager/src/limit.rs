//! One guest's limit: what its process was given, and what it may therefore still hold.
//!
//! A process says which limit holds. It is believed that a lower one does, never that a higher one does: what it may
//! hold is what it was given, and what it holds above that by the kernel's count is an overrun. An overrun gives no
//! right: it raises no limit, and goes from what the process itself would be handed out.

use std::time::Duration;

use allocator::Pages;

/// A process above its limit that gets no closer to it for this long can give up no more.
const STUCK: Duration = Duration::from_secs(2);

/// Beyond its limit by this much a process makes room, and this much less than before is closer to it.
const NEARER: Pages = Pages::new(256);

/// A limit counts no more once a process that speaks was sent only lower ones for this time, whether it says so or not:
/// orders are repeated once a second, and an honest process follows within milliseconds.
const UNHEARD: Duration = Duration::from_secs(10);

/// The same for a process that is silent. It may be cut off, and then its last limit holds for a minute.
const UNHEARD_SILENT: Duration = Duration::from_secs(70);

/// An overrun below this is how coarsely the kernel counts, and what a process needs while it makes room: a fixed part.
const COARSE: Pages = Pages::from_mib(4);

/// The same as a part of the limit.
const COARSE_PART: f64 = 1.0 / 64.0;

/// Whether a process reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Voice {
    /// It does.
    Speaks,
    /// It has not reported for a while.
    Silent,
}

/// The limit of one guest's process.
#[derive(Debug, Clone, Default)]
pub(super) struct Limit {
    /// The one it was sent last.
    sent: Option<Pages>,
    /// The highest that it was given and has not yet said to have replaced by a lower one.
    ceiling: Pages,
    /// The highest that it was sent for `since`.
    recent: Pages,
    since: Duration,
    /// What it may hold: its ceiling, or while it comes down to that what it held last.
    allowed: Pages,
    /// The least that it held since it was above its limit, and for how long it has held no less.
    above: Option<(Pages, Duration)>,
}

impl Limit {
    /// The limit that it was sent last.
    pub(super) fn sent(&self) -> Option<Pages> {
        self.sent
    }

    /// Sends it a limit.
    pub(super) fn send(&mut self, limit: Pages) {
        self.sent = Some(limit);
        self.ceiling = self.ceiling.max(limit);
        self.recent = self.recent.max(limit);
        self.allowed = self.allowed.max(limit);
    }

    /// Takes in which limit holds by its own word. Up to `own`, its minimum, it may have raised the limit itself.
    pub(super) fn on_reported(&mut self, said: Pages, own: Pages) {
        if let Some(sent) = self.sent {
            self.ceiling = said.min(self.ceiling.max(own)).max(sent);
        }
    }

    /// Lets `elapsed` pass, at the end of which the process holds `held`.
    pub(super) fn pass(&mut self, held: Pages, voice: Voice, elapsed: Duration) {
        let Some(sent) = self.sent else {
            self.allowed = held;
            return;
        };
        self.since = self.since.saturating_add(elapsed);
        let patience = match voice {
            Voice::Speaks => UNHEARD,
            Voice::Silent => UNHEARD_SILENT,
        };
        if self.since > patience {
            self.ceiling = self.ceiling.min(self.recent);
            (self.recent, self.since) = (sent, Duration::ZERO);
        }
        self.allowed = self.ceiling.max(held.min(self.allowed));
        self.above = (held > sent + NEARER).then(|| match self.above {
            Some((least, since)) if held + NEARER > least => (least, since.saturating_add(elapsed)),
            _ => (held, Duration::ZERO),
        });
    }

    /// What it may hold by what it was given.
    pub(super) fn allowed(&self) -> Pages {
        self.allowed
    }

    /// What it holds beyond that.
    pub(super) fn overrun(&self, held: Pages) -> Pages {
        let overrun = match self.sent {
            Some(_) => held.less(self.allowed),
            None => Pages::ZERO,
        };
        if overrun > COARSE.max(self.allowed.part(COARSE_PART)) {
            overrun
        } else {
            Pages::ZERO
        }
    }

    /// Whether it is above its limit and gives up no more, because it has nowhere to put its pages, or will not.
    pub(super) fn is_stuck(&self) -> bool {
        self.above.is_some_and(|(_, since)| since >= STUCK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn mib(count: u64) -> Pages {
        Pages::from_mib(count)
    }

    /// A process that was given 100 MiB and has heard of it.
    fn given() -> Limit {
        let mut limit = Limit::default();
        limit.pass(mib(5), Voice::Speaks, SECOND);
        assert_eq!(
            limit.allowed(),
            mib(5),
            "before its first limit it may hold what it does"
        );
        limit.send(mib(100));
        limit.on_reported(mib(100), mib(16));
        limit
    }

    #[test]
    fn a_process_is_never_believed_a_higher_limit_than_it_was_given() {
        let mut limit = given();
        for said in [mib(101), mib(500), Pages::new(1 << 40), Pages::new(u64::MAX)] {
            limit.on_reported(said, mib(16));
            limit.pass(mib(50), Voice::Speaks, SECOND);
            assert_eq!(limit.allowed(), mib(100));
        }
        // Nor before it was given any.
        let mut new = Limit::default();
        new.on_reported(Pages::new(1 << 40), mib(16));
        new.pass(mib(5), Voice::Speaks, SECOND);
        assert_eq!(new.allowed(), mib(5));
        // Up to its minimum it may help itself.
        limit.send(mib(10));
        limit.on_reported(mib(10), mib(16));
        limit.on_reported(mib(30), mib(16));
        limit.pass(mib(5), Voice::Speaks, SECOND);
        assert_eq!(limit.allowed(), mib(16));
    }

    #[test]
    fn a_lowered_limit_counts_at_its_old_value_until_it_is_heard_and_what_is_held_after_that() {
        let mut limit = given();
        limit.pass(mib(90), Voice::Speaks, SECOND);
        limit.send(mib(60));
        limit.pass(mib(95), Voice::Speaks, SECOND);
        assert_eq!((limit.allowed(), limit.overrun(mib(95))), (mib(100), Pages::ZERO));
        limit.on_reported(mib(60), mib(16));
        for held in [90, 80, 70] {
            limit.pass(mib(held), Voice::Speaks, SECOND);
            assert_eq!(
                (limit.allowed(), limit.overrun(mib(held))),
                (mib(held), Pages::ZERO)
            );
        }
        // It came down to 70 and may not go up again.
        limit.pass(mib(85), Voice::Speaks, SECOND);
        assert_eq!((limit.allowed(), limit.overrun(mib(85))), (mib(70), mib(15)));
        limit.pass(mib(50), Voice::Speaks, SECOND);
        assert_eq!((limit.allowed(), limit.overrun(mib(50))), (mib(60), Pages::ZERO));
    }

    #[test]
    fn a_process_that_never_says_that_a_lower_limit_holds_keeps_the_old_one_for_a_while_only() {
        for (voice, seconds) in [(Voice::Speaks, 10), (Voice::Silent, 70)] {
            let mut limit = given();
            limit.send(mib(20));
            for _ in 0..seconds {
                limit.pass(mib(5), voice, SECOND);
                assert_eq!(limit.allowed(), mib(100));
                // Nor does it help to come down by a page at a time.
                limit.send(mib(20));
            }
            for _ in 0..=seconds + 1 {
                limit.pass(mib(5), voice, SECOND);
            }
            assert_eq!(limit.allowed(), mib(20), "{voice:?}");
        }
    }

    #[test]
    fn a_process_that_comes_no_closer_to_its_limit_is_stuck() {
        let mut limit = given();
        limit.send(mib(50));
        limit.on_reported(mib(50), mib(16));
        for (held, stuck) in [(90, false), (80, false), (80, false), (80, true), (70, false)] {
            limit.pass(mib(held), Voice::Speaks, SECOND);
            assert_eq!(limit.is_stuck(), stuck, "{held}");
        }
    }
}
