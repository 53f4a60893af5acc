//! Guests that do what they are told, at the speed they are told it.

use super::*;

/// A guest that has touched all its memory once and goes on using `active` of it.
pub(super) struct ModelGuest {
    pub(super) active: Pages,
    pub(super) dead_balloon: bool,
}

/// A host with its guests, one second after the other.
pub(super) struct ModelHost {
    pub(super) policy: Policy,
    pub(super) members: Vec<Member>,
    pub(super) guests: Vec<ModelGuest>,
    pub(super) seconds: u64,
}

impl ModelHost {
    pub(super) fn new(budget: Pages, guests: Vec<ModelGuest>) -> Self {
        let limits = Limits {
            min: Pages::from_mib(64),
            max: Pages::from_mib(256),
            shares: Shares::NORMAL,
            group: None,
        };
        let members = (0..guests.len())
            .map(|id| Member::new(GuestId::new(id as u64), limits))
            .collect();
        let mut host = Self {
            policy: Policy::new(Settings::new(budget)),
            members,
            guests,
            seconds: 0,
        };
        for (member, guest) in host.members.iter_mut().zip(&host.guests) {
            let mut report = Report::default();
            report.pages.private = limits.max.get();
            report.balloon = Some(BalloonReport {
                unresponsive: guest.dead_balloon,
                ..BalloonReport::default()
            });
            member.held = limits.max;
            member.on_report(report);
        }
        host
    }

    pub(super) fn run(&mut self, seconds: u64) -> Round {
        let mut last = None;
        for _ in 0..seconds {
            self.seconds += 1;
            let round = self
                .policy
                .round(SECOND, Spent::default(), &[], &mut self.members)
                .unwrap();
            for (member, guest) in self.members.iter_mut().zip(&self.guests) {
                obey(member, guest, &round.orders[&member.id], self.seconds);
            }
            last = Some(round);
        }
        last.unwrap()
    }

    /// One round, `elapsed` after the last.
    pub(super) fn round(&mut self, elapsed: Duration) -> Round {
        self.policy
            .round(elapsed, Spent::default(), &[], &mut self.members)
            .unwrap()
    }

    pub(super) fn private(&self, index: usize) -> f64 {
        self.members[index].private().mib()
    }
}

/// What the guest with this number is told.
pub(super) fn told(round: &Round, guest: u64) -> Orders {
    round.orders[&GuestId::new(guest)]
}

pub(super) fn obey(member: &mut Member, guest: &ModelGuest, orders: &Orders, seconds: u64) {
    let mut report = member.report.clone();
    let max = member.limits.max.get();
    if !guest.dead_balloon {
        report.pages.ballooned = orders.balloon_pages;
    }
    let cold = (max - report.pages.ballooned - report.pages.compressed - report.pages.swapped)
        .saturating_sub(guest.active.get());
    let compressed = orders.compress_pages.min(cold);
    report.pages.compressed += compressed;
    report.pages.swapped += orders.swap_pages.min(cold - compressed);
    let away = report.pages.ballooned + report.pages.compressed + report.pages.swapped;
    report.pages.private = max - away;
    if let Some(balloon) = &mut report.balloon {
        balloon.actual_pages = report.pages.ballooned;
    }
    let fraction = guest.active.of(Pages::new(report.pages.private)).min(1.0);
    report.activity = Activity {
        periods: seconds / 30,
        last: ((fraction * 100.0).round() as u32, 100),
        running: (0, 0),
    };
    // What was compressed takes half its size in the process.
    report.store_bytes = report.pages.compressed / 2 * 4096;
    member.held = Pages::new(report.pages.private + report.pages.compressed / 2);
    member.on_report(report);
}

/// A budget that leaves 360 MiB to hand out once the free memory aimed for is set aside.
pub(super) fn figure_7() -> Pages {
    let part = 0.06 * (1.0 + Thresholds::HYSTERESIS);
    Pages::from_mib(360).part(1.0 / (1.0 - part)) + Pages::new(2)
}

/// Two guests in 300 MiB: one holds most of it, the other asks for memory that it is entitled to.
pub(super) fn one_waits() -> ModelHost {
    let guest = || ModelGuest {
        active: Pages::from_mib(64),
        dead_balloon: true,
    };
    let mut host = ModelHost::new(Pages::from_mib(300), vec![guest(), guest()]);
    for (index, held) in [(0, 200), (1, 60)] {
        host.members[index].held = Pages::from_mib(held);
        host.members[index].report.pages.private = Pages::from_mib(held).get();
    }
    host
}

pub(super) fn limits(host: &mut ModelHost, elapsed: Duration) -> (Round, Vec<u64>) {
    let round = host
        .policy
        .round(elapsed, Spent::default(), &[], &mut host.members)
        .unwrap();
    let limits = round
        .orders
        .values()
        .map(|orders| orders.limit_bytes.unwrap() >> 20)
        .collect();
    (round, limits)
}

/// What all guests may come to hold before they hear of other limits.
pub(super) fn in_force(members: &[Member]) -> Pages {
    members.iter().map(Member::in_force).sum()
}
