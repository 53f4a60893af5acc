//! A manager client and the rest of its VMM.

use std::sync::OnceLock;

use page_share::Region;

use super::*;
use crate::Threads;
use crate::test_guest::TestGuest;

#[test]
fn times_between_attempts_differ_and_are_bounded() {
    let times: Vec<_> = (0..100).map(|_| drawn(RETRY)).collect();
    assert!(times.iter().all(|time| RETRY.contains(time)), "{times:?}");
    assert!(times.iter().min() < times.iter().max());
}

/// A VMM whose balloon is slow: it takes until pages of the guest have gone by other ways, or a minute.
struct SlowBalloon {
    region: Arc<Region>,
    gone: Arc<OnceLock<bool>>,
}

impl Duties for SlowBalloon {
    fn balloon(&mut self, _: u64) {
        let until = Instant::now() + Duration::from_secs(60);
        let gone = || self.region.stats().compressed + self.region.stats().swapped > 0;
        while !gone() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        self.gone.set(gone()).unwrap();
    }

    fn is_paused(&self) -> bool {
        false
    }

    fn stop(&mut self) {}

    fn pause(&mut self, _: bool) {}
}

/// A VMM without a balloon.
struct Idle;

impl Duties for Idle {
    fn is_paused(&self) -> bool {
        false
    }

    fn stop(&mut self) {}

    fn pause(&mut self, _: bool) {}
}

/// A session of `guest` that never met its manager.
fn session(guest: TestGuest, duties: Box<dyn Duties>) -> Session {
    Session {
        limits: LimitThread::start(guest.region(), 0, Threads::default()).unwrap(),
        duties,
        managed: guest.managed,
        orders: Orders::default(),
        sampler: Sampler::default(),
        report_due: Instant::now(),
        written: (Instant::now(), 0),
        hello: Hello::new("g1", 4 << 20),
        leaving: Arc::default(),
    }
}

#[test]
fn a_new_limit_holds_before_anything_else_of_the_orders_is_done() {
    let guest = TestGuest::full(4);
    let gone = Arc::new(OnceLock::new());
    let region = Arc::clone(guest.region());
    let mut session = session(
        guest,
        Box::new(SlowBalloon {
            region,
            gone: Arc::clone(&gone),
        }),
    );
    // This process holds more, so that pages are taken away.
    session.follow(Orders {
        limit_bytes: Some(1 << 20),
        ..Orders::default()
    });
    assert_eq!(gone.get(), Some(&true), "the limit waited for the balloon");
}

#[test]
fn only_orders_to_reclaim_are_answered_with_a_report_at_once() {
    let guest = TestGuest::full(4);
    let mut session = session(guest, Box::new(Idle));
    for (compress_pages, swap_pages, at_once) in [(0, 0, false), (1, 0, true), (0, 1, true)] {
        let later = Instant::now() + Duration::from_secs(3600);
        session.report_due = later;
        session.follow(Orders {
            compress_pages,
            swap_pages,
            ..Orders::default()
        });
        assert_eq!(
            session.report_due < later,
            at_once,
            "{compress_pages} {swap_pages}"
        );
    }
}

#[test]
fn a_guest_above_3_gib_whose_memory_has_no_hole_is_refused_by_that_reason() {
    const GIB: u64 = 1 << 30;
    has_its_frames(3 * GIB, 3 << 18).unwrap();
    has_its_frames(5 * GIB, 6 << 18).unwrap();
    let refused = has_its_frames(5 * GIB, 5 << 18).unwrap_err().to_string();
    for words in [
        "end at 1310720",
        "not at 1572864",
        "5368709120 bytes",
        "frame 1048576",
    ] {
        assert!(refused.contains(words), "{words:?} is not in {refused}");
    }
}
