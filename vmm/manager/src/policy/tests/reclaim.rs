//! What is ordered to be given up, and when.

use super::model::*;
use super::*;

#[test]
fn a_dead_balloon_is_compressed_and_swapped_instead() {
    let mut host = ModelHost::new(
        figure_7(),
        vec![
            ModelGuest {
                active: Pages::ZERO,
                dead_balloon: true,
            },
            ModelGuest {
                active: Pages::from_mib(256),
                dead_balloon: false,
            },
        ],
    );
    let round = host.run(180);
    let pages = host.members[0].report.pages;
    assert_eq!(pages.ballooned, 0);
    assert!(pages.compressed + pages.swapped > 0, "{pages:?}");
    // Its compressed pages are memory it holds.
    let held = host.private(0) + host.members[0].store().mib();
    assert!(round.free > 0 && held >= 64.0, "{round:?}, held {held} MiB");
}

#[test]
fn no_squeeze_is_ordered_on_figures_from_before_the_last_one() {
    let guest = || ModelGuest {
        active: Pages::ZERO,
        dead_balloon: true,
    };
    let mut host = ModelHost::new(Pages::from_mib(400), vec![guest(), guest()]);
    for member in &mut host.members {
        let mut report = member.report.clone();
        report.activity = Activity {
            periods: 1,
            last: (0, 100),
            running: (0, 0),
        };
        member.on_report(report);
    }
    let squeezed = |round: &Round| {
        round
            .orders
            .values()
            .map(|orders| orders.compress_pages)
            .sum::<u64>()
    };
    let (first, _) = limits(&mut host, SECOND);
    assert!(squeezed(&first) > 0, "{first:?}");
    let (second, _) = limits(&mut host, SECOND);
    assert_eq!(squeezed(&second), 0);
}

#[test]
fn a_balloon_that_drips_keeps_no_other_way_from_reclaiming() {
    let idle = || ModelGuest {
        active: Pages::ZERO,
        dead_balloon: true,
    };
    let mut host = ModelHost::new(Pages::from_mib(400), vec![idle(), idle()]);
    let mut squeezed = Vec::new();
    // A page a second.
    for size in 0..12 {
        for member in &mut host.members {
            member.held = Pages::from_mib(194);
            let mut report = Report::default();
            report.pages.private = member.held.get() - size;
            report.pages.ballooned = size;
            report.balloon = Some(BalloonReport {
                actual_pages: size,
                ..BalloonReport::default()
            });
            report.activity = Activity {
                periods: 1,
                last: (0, 100),
                running: (0, 0),
            };
            member.on_report(report);
        }
        let round = host.round(SECOND);
        assert_eq!(round.state, State::Soft);
        if told(&round, 0).compress_pages > 0 {
            squeezed.push(size);
        }
    }
    assert!(
        squeezed.first().is_some_and(|&first| (1..=5).contains(&first)),
        "{squeezed:?}"
    );
    assert!(squeezed.len() >= 6, "{squeezed:?}");
}
