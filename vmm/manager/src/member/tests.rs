//! What a guest's process says, against what the kernel counts of it and what it was given.

use allocator::Shares;

use super::*;
use levy_protocol::link::BalloonReport;
use levy_protocol::process_memory::Held;

const SECOND: Duration = Duration::from_secs(1);

fn mib(count: u64) -> Pages {
    Pages::from_mib(count)
}

/// A guest of 1 GiB whose process holds `held` MiB and reports `private` MiB of private pages.
fn guest(held: u64, private: u64) -> Member {
    let limits = Limits {
        min: mib(64),
        max: mib(1024),
        shares: Shares::NORMAL,
        group: None,
    };
    let mut member = Member::new(GuestId::new(1), limits);
    hold(&mut member, held);
    assert!(member.on_report(report(private)));
    member.pass(SECOND, 100);
    member
}

fn hold(member: &mut Member, mib: u64) {
    member.count(Counted {
        held: Held {
            anonymous: mib << 20,
            page_tables: 0,
        },
        mappings: Some(0),
    });
}

fn report(private: u64) -> Report {
    let mut report = Report::default();
    report.pages.private = mib(private).get();
    report.pages.empty = mib(1024 - private).get();
    report
}

#[test]
fn a_new_guest_is_active_as_far_as_it_holds_memory_and_no_further() {
    let limits = guest(5, 0).limits;
    let mut new = Member::new(GuestId::new(1), limits);
    assert_eq!(new.estimate.active, Pages::ZERO);
    // Its memory is huge blocks of which it has touched next to nothing.
    for (held, private) in [(5, 1024), (30, 1024), (700, 1024)] {
        hold(&mut new, held);
        assert!(new.on_report(report(private)));
        // A sample was taken, and nothing of it can have been touched.
        let mut sampling = report(private);
        sampling.activity.running = (0, 100);
        assert!(new.on_report(sampling));
        new.pass(SECOND, 100);
        assert_eq!(
            new.estimate.active,
            mib(held),
            "all that is held, until a period has ended"
        );
        assert_eq!(new.pages().private, mib(held).get());
        assert_eq!(new.claim(SECOND).holding.held, mib(held));
    }
    let mut ended = report(1024);
    ended.activity.periods = 1;
    ended.activity.last = (10, 100);
    assert!(new.on_report(ended));
    new.pass(SECOND, 100);
    assert_eq!(new.estimate.active, mib(70));
}

#[test]
fn a_report_of_more_pages_than_the_guest_has_changes_nothing() {
    let mut member = guest(500, 480);
    let before = member.report.clone();
    let mut reports = [1024, 100, 100, 1024, 100, 100].map(report);
    reports[0].pages.shared = 1;
    reports[1].pages.zero = u64::MAX;
    reports[2].pages.swapped = mib(925).get();
    reports[2].pages.empty = 0;
    reports[3].pages.ballooned = u64::MAX - mib(1024).get() + 1;
    let balloon = BalloonReport::default;
    reports[4].balloon = Some(BalloonReport {
        actual_pages: 1 << 63,
        ..balloon()
    });
    reports[5].balloon = Some(BalloonReport {
        target_pages: mib(1024).get() + 1,
        ..balloon()
    });
    for impossible in reports {
        assert!(!member.on_report(impossible), "{:?}", member.report);
        assert_eq!(member.report, before);
    }
    let mut most = report(1024);
    most.balloon = Some(BalloonReport {
        actual_pages: mib(1024).get(),
        ..balloon()
    });
    (most.written_per_second, most.pages_in) = (u64::MAX, u64::MAX);
    assert!(member.on_report(most), "all its pages it may have");
    assert_eq!(member.report.written_per_second, mib(1024).get());
    member.pass(SECOND, 100);
    assert_eq!(member.refaulted, mib(1024));
}

#[test]
fn what_a_process_leaves_out_is_its_guests_memory_all_the_same() {
    // It says that it has nothing, and holds 500 MiB.
    let liar = guest(500, 0);
    let most = liar.most() - liar.limits.max;
    assert_eq!(liar.overhead(), most);
    assert_eq!(liar.claim(SECOND).holding.held, mib(500) - most);
    assert_eq!(liar.private() + liar.overhead(), mib(500));
    // It says that it has everything, and that its store is full, too.
    let mut liar = guest(500, 1024);
    liar.report.store_bytes = u64::MAX;
    assert_eq!((liar.private(), liar.store()), (mib(500), Pages::ZERO));
    // An honest one has what it says.
    let mut honest = guest(500, 400);
    honest.report.store_bytes = 90 << 20;
    let parts = (honest.private(), honest.store(), honest.overhead());
    assert_eq!(parts, (mib(400), mib(90), mib(10)));
}

#[test]
fn mappings_cost_memory_that_a_process_does_not_count_against_its_limit() {
    let mut member = guest(500, 490);
    let count = |mappings| Counted {
        held: Held {
            anonymous: 500 << 20,
            page_tables: 0,
        },
        mappings,
    };
    member.count(count(Some(40_000)));
    let cost = Pages::new((40_000 * MAPPING_BYTES).div_ceil(4096));
    assert!(cost > mib(8));
    assert_eq!(
        (member.held, member.overhead()),
        (mib(500) + cost, mib(10) + cost)
    );
    assert_eq!(member.private(), mib(490));
    // It keeps to less than it may hold by as much.
    assert_eq!(member.limit(mib(600)), (600 << 20) - cost.get() * 4096);
    member.on_limit_status(LimitStatus {
        limit_bytes: Some((600 << 20) - cost.get() * 4096),
        ..LimitStatus::default()
    });
    member.pass(SECOND, 100);
    assert_eq!(member.allowed(), mib(600));
    // Where the kernel does not show them, shared pages tell how many there may be.
    member.report.pages.shared = mib(400).get();
    member.count(count(None));
    let guessed = mib(400).part(0.3).get() * MAPPING_BYTES;
    assert_eq!(member.uncounted, Pages::new(guessed.div_ceil(4096)));
}

#[test]
fn a_claimed_limit_gives_nothing() {
    let mut member = guest(50, 40);
    member.limit(mib(100));
    for bytes in [1 << 40, u64::MAX, 101 << 20] {
        member.on_limit_status(LimitStatus {
            limit_bytes: Some(bytes),
            gated: false,
            waiting: 0,
        });
        member.pass(SECOND, 100);
        assert_eq!((member.allowed(), member.in_force()), (mib(100), mib(100)));
    }
}

#[test]
fn a_process_far_below_its_limit_does_not_wait_whatever_it_says() {
    let mut member = guest(50, 40);
    member.standing.waiting = u64::MAX;
    assert!(member.waits(), "without a limit it is believed");
    member.limit(mib(200));
    assert!(!member.waits());
    hold(&mut member, 196);
    assert!(member.waits());
    member.standing.waiting = 0;
    assert!(!member.waits());
}

#[test]
fn a_guest_stands_still_that_waits_for_seconds_while_no_access_gets_memory() {
    let mut member = guest(100, 50);
    let waits = LimitStatus {
        limit_bytes: None,
        gated: true,
        waiting: 1,
    };
    member.on_limit_status(waits);
    let mut second = |change: &dyn Fn(&mut Member)| {
        change(&mut member);
        member.pass(SECOND, 100);
        member.stands_still()
    };
    let reports = |member: &mut Member| assert!(member.on_report(report(50)));
    assert_eq!([(); 4].map(|()| second(&reports)), [false, false, false, true]);
    // A page came back.
    let brings = |member: &mut Member| {
        let pages_in = member.report.pages_in + 1;
        assert!(member.on_report(Report {
            pages_in,
            ..report(50)
        }));
    };
    assert!(!second(&brings));
    let stays = |member: &mut Member| assert!(member.on_report(member.report.clone()));
    assert_eq!([(); 4].map(|()| second(&stays)), [false, false, false, true]);
    // Nor is it known of a guest that says nothing.
    assert!(!second(&|member| member.standing.waiting = 0));
    member.on_limit_status(waits);
    for _ in 0..20 {
        member.pass(SECOND, 100);
        assert!(!member.stands_still(), "{:?}", member.age);
    }
}

#[test]
fn a_guest_whose_process_comes_to_hold_more_does_not_stand_still_whatever_it_reports() {
    let mut member = guest(100, 50);
    member.on_limit_status(LimitStatus {
        limit_bytes: None,
        gated: true,
        waiting: 1,
    });
    let mut second = |grown: u64| {
        member.held += Pages::new(grown);
        assert!(member.on_report(report(50)));
        member.pass(SECOND, 100);
        member.stands_still()
    };
    assert_eq!([0; 4].map(&mut second), [false, false, false, true]);
    assert!((0..20).all(|_| !second(257)));
    // What an engine needs is not a guest's growth.
    assert_eq!([60; 4].map(&mut second), [false, false, false, true]);
}

/// A guest of 1 GiB that holds 900 MiB and was asked for 400 MiB by its balloon.
fn ballooned() -> Member {
    let mut member = guest(900, 890);
    member.balloon_asked = mib(400);
    member
}

/// One second later it has given `size` pages, and holds `held`.
fn balloon(member: &mut Member, size: u64, held: Pages) {
    let mut report = report(500);
    report.balloon = Some(BalloonReport {
        actual_pages: size,
        ..BalloonReport::default()
    });
    hold(member, held.get() / 256);
    assert!(member.on_report(report));
    member.pass(SECOND, 100);
}

#[test]
fn a_balloon_is_waited_for_by_what_it_brings() {
    let room = |member: &Member| match member.claim(SECOND).holding.balloon {
        Balloon::Answers { room, .. } => room,
        Balloon::Silent => panic!("a silent balloon"),
    };
    let mut fast = ballooned();
    for second in 1..=5 {
        balloon(&mut fast, 2560 * second, mib(900 - 10 * second));
    }
    assert_eq!((fast.coming(SECOND), room(&fast)), (mib(10), mib(10)));
    // A page a second.
    let mut slow = ballooned();
    for second in 1..=5 {
        balloon(&mut slow, second, mib(900 - second));
    }
    assert_eq!((slow.coming(SECOND).get(), room(&slow).get()), (1, 1));
    // One that says so much and gives nothing.
    let mut liar = ballooned();
    for second in 1..=5 {
        balloon(&mut liar, 2560 * second, mib(900));
    }
    assert_eq!((liar.coming(SECOND), room(&liar)), (Pages::ZERO, Pages::ZERO));
    assert_eq!(liar.claim(SECOND).holding.held, liar.held - liar.overhead());
}

#[test]
fn a_sample_is_no_larger_than_it_was_asked_to_be() {
    let interval = |drawn: u32| {
        let mut member = guest(500, 490);
        let mut said = report(490);
        said.activity.periods = 1;
        said.activity.last = (drawn / 2, drawn);
        assert!(member.on_report(said));
        member.pass(SECOND, 100);
        (member.estimate.fraction, member.estimate.interval)
    };
    assert_eq!(interval(100), interval(4_000_000_000));
}

#[test]
fn breaks_of_more_than_the_guest_count_as_the_guest() {
    let mut member = guest(500, 490);
    let mut said = report(490);
    said.cow_breaks = u64::MAX;
    assert!(member.on_report(said));
    member.pass(SECOND, 100);
    let demand = member.breaks().demand(Pages::LIMIT, 1, 0.5);
    assert!(demand.pages <= mib(2048), "{demand:?}");
}
