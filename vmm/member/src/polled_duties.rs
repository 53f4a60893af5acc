//! Duties for a VMM with a main loop: the loop finds here what is asked, and says what it has done.

use std::sync::{Arc, Mutex, MutexGuard};

use levy_protocol::link::BalloonReport;

use super::{Duties, lock};

/// What the manager asks of a VMM besides memory, and what of that is done. Clones are the same; the manager client has one
/// of them as its [`Duties`].
#[derive(Debug, Clone, Default)]
pub struct PolledDuties(Arc<Mutex<Requests>>);

#[derive(Debug, Default)]
struct Requests {
    balloon_asked: u64,
    balloon: Option<u64>,
    pause_asked: bool,
    paused: bool,
    stop_asked: bool,
}

impl PolledDuties {
    /// Pages that the manager wants in the balloon.
    pub fn balloon_asked(&self) -> u64 {
        self.requests().balloon_asked
    }

    /// There are `pages` pages in the balloon. A VMM that never says so has none.
    pub fn set_balloon(&self, pages: u64) {
        self.requests().balloon = Some(pages);
    }

    /// Whether the manager wants the virtual CPUs to stand still.
    pub fn pause_asked(&self) -> bool {
        self.requests().pause_asked
    }

    /// The virtual CPUs stand still, or run again.
    pub fn set_paused(&self, paused: bool) {
        self.requests().paused = paused;
    }

    /// Whether the manager wants the guest to end.
    pub fn stop_asked(&self) -> bool {
        self.requests().stop_asked
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        lock(&self.0)
    }
}

impl Duties for PolledDuties {
    fn balloon(&mut self, pages: u64) {
        self.requests().balloon_asked = pages;
    }

    fn balloon_report(&self) -> Option<BalloonReport> {
        let requests = self.requests();
        requests.balloon.map(|pages| BalloonReport {
            target_pages: requests.balloon_asked,
            actual_pages: pages,
            ..BalloonReport::default()
        })
    }

    fn is_paused(&self) -> bool {
        self.requests().paused
    }

    fn stop(&mut self) {
        self.requests().stop_asked = true;
    }

    fn pause(&mut self, paused: bool) {
        self.requests().pause_asked = paused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_not_done_before_the_loop_says_so() {
        let polled = PolledDuties::default();
        let mut duties = polled.clone();
        assert!(duties.balloon_report().is_none(), "a VMM without a balloon");
        polled.set_balloon(0);
        duties.balloon(7);
        duties.pause(true);
        let report = duties.balloon_report().unwrap();
        assert_eq!((report.target_pages, report.actual_pages), (7, 0));
        assert!(polled.balloon_asked() == 7 && polled.pause_asked() && !duties.is_paused());
        polled.set_balloon(7);
        polled.set_paused(true);
        assert_eq!(duties.balloon_report().unwrap().actual_pages, 7);
        assert!(duties.is_paused() && !polled.stop_asked());
        duties.stop();
        assert!(polled.stop_asked());
    }
}
