//! The simulated host: the real policy over simulated guests.

use std::time::Duration;

use allocator::{
    Action, Admission, BreakMeter, Claim, Fleet, Group, GroupId, GuestId, Ladder, Overbooking, Pages, Plan,
    Planner, Reservation, Shares, Situation, State, StateMachine, Step, Supply, Tax, Thresholds,
};
use anyhow::{Context, Result, anyhow};

use crate::dice::Dice;
use crate::fleet_file::{FleetFile, GroupPart};
use crate::guest::Guest;

/// Published: rebalance every 15 s, and on every change of state.
const REBALANCE_S: u32 = 15;
/// Ten shared pages have one common copy.
const PAGES_PER_COPY: u64 = 10;

pub(crate) struct Host {
    pub(crate) total: u64,
    swap: u64,
    compressed: u64,
    tax: Tax,
    sample: u32,
    scan_pages_s: u64,
    groups: Vec<Group>,
    pub(crate) guests: Vec<Guest>,
    machine: StateMachine,
    ladder: Ladder,
    planner: Planner,
    pub(crate) plan: Plan,
    steps: Vec<Step>,
    meters: Vec<BreakMeter>,
    pub(crate) tally: Tally,
}

/// What the host did, in pages, and how it fared.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Tally {
    pub(crate) ballooned: u64,
    pub(crate) shared: u64,
    pub(crate) compressed: u64,
    pub(crate) swapped: u64,
    pub(crate) broken: u64,
    pub(crate) plans: u64,
    pub(crate) state_changes: u64,
    /// Seconds in each state: high, soft, hard, low.
    pub(crate) seconds: [u64; 4],
    /// Seconds in which minimums, copies and compressed pages left nothing to divide.
    pub(crate) strained_s: u64,
}

impl Host {
    pub(crate) fn new(file: &FleetFile, seed: u64) -> Result<Self> {
        let mut dice = Dice::new(seed);
        let tax = Tax::new(file.host.tax).context("host")?;
        let groups = groups(&file.groups)?;
        let mut guests = Vec::new();
        for (kind, part) in file.guests.iter().enumerate() {
            for number in 0..part.count {
                let mut guest = Guest::new(part, kind, number, &mut dice);
                guest.id = GuestId::new(guests.len() as u64);
                guest.group = part
                    .group
                    .as_deref()
                    .and_then(|name| group_id(&file.groups, name));
                guests.push(guest);
            }
        }
        let total = match (file.host.total_mib, file.host.guests_mib) {
            (Some(total), _) => total * 256,
            (None, guests) => total_for(guests.unwrap_or(0) * 256),
        };
        let machine = StateMachine::new(Thresholds::published(Pages::new(total)));
        let host = Self {
            total,
            swap: file.host.swap_mib * 256,
            compressed: file.host.compressed_mib * 256,
            tax,
            sample: file.host.sample,
            scan_pages_s: file.host.scan_pages_s,
            groups,
            meters: vec![BreakMeter::default(); guests.len()],
            guests,
            machine,
            ladder: Ladder::default(),
            planner: Planner::default(),
            plan: Plan::default(),
            steps: Vec::new(),
            tally: Tally::default(),
        };
        host.admit()?;
        Ok(host)
    }

    /// One by one, as a manager would.
    fn admit(&self) -> Result<()> {
        let admission = Admission {
            memory: Pages::new(self.total).less(self.machine.thresholds().goal()),
            backing: Pages::new(self.swap + self.compressed),
            break_reserve: Pages::ZERO,
        };
        let mut admitted = Vec::new();
        for guest in &self.guests {
            let asked = Reservation {
                guest: guest.id,
                min: Pages::new(guest.min),
                max: Pages::new(guest.max),
                overhead: Pages::new(guest.overhead),
            };
            admission
                .check(&admitted, &asked)
                .map_err(|error| anyhow!("{} ({}): {error}", guest.name, guest.id))?;
            admitted.push(asked);
        }
        Ok(())
    }

    /// Memory that neither guests nor the host's own stores occupy.
    pub(crate) fn free(&self) -> u64 {
        let used: u64 = self
            .guests
            .iter()
            .map(|guest| guest.charged() + guest.overhead)
            .sum();
        self.total.saturating_sub(used + self.copies())
    }

    fn copies(&self) -> u64 {
        self.guests
            .iter()
            .map(|guest| guest.place.shared)
            .sum::<u64>()
            .div_ceil(PAGES_PER_COPY)
    }

    pub(crate) fn state(&self) -> State {
        self.machine.state()
    }

    /// One second of every guest's life, then of the manager's.
    pub(crate) fn tick(&mut self, now: u32) -> Result<()> {
        let mut free = self.free();
        for guest in &mut self.guests {
            guest.live(now, &mut free);
            guest.sampled(now, self.sample);
            self.tally.broken += guest.broken;
        }
        self.scan(now);
        self.manage(now)
    }

    fn scan(&mut self, now: u32) {
        if self.scan_pages_s == 0 {
            return;
        }
        for guest in &mut self.guests {
            if now % 60 == 0 {
                guest.forget_tried();
            }
            self.tally.shared += guest.share(self.scan_pages_s);
        }
    }

    fn manage(&mut self, now: u32) -> Result<()> {
        let before = self.machine.state();
        let free = Pages::new(self.free());
        let state = self.machine.observe(free);
        self.tally.seconds[state as usize] += 1;
        self.tally.state_changes += u64::from(state != before);
        let fleet = self.fleet()?;
        if now % REBALANCE_S == 0 || state != before {
            self.planner.plan(&fleet, &mut self.plan);
            self.tally.plans += 1;
        }
        if now % REBALANCE_S == 0 {
            for (meter, guest) in self.meters.iter_mut().zip(&mut self.guests) {
                meter.observe(Pages::new(guest.take_broken()));
            }
        }
        let goal = self.machine.thresholds().goal();
        let now = Situation {
            state,
            free,
            goal,
            elapsed: Duration::from_secs(1),
        };
        let mut steps = std::mem::take(&mut self.steps);
        self.ladder.decide(&fleet, &self.plan, now, &mut steps);
        self.ask_again(state);
        for step in &steps {
            self.act(*step);
        }
        self.steps = steps;
        Ok(())
    }

    /// No guest stays blocked without being told again, and a silent balloon goes on being asked for what its target
    /// now implies, so that it is noticed when it comes to life.
    fn ask_again(&mut self, state: State) {
        for (guest, target) in self.guests.iter_mut().zip(self.plan.targets()) {
            guest.blocked = false;
            if !guest.answers() {
                let over = Pages::new(guest.charged()).less(target.pages).get();
                let wanted = if state == State::High { 0 } else { over };
                guest.asked = (guest.balloon + wanted).min(guest.max);
            }
        }
    }

    fn act(&mut self, step: Step) {
        let pages = step.pages.get();
        let swap_left = self
            .swap
            .saturating_sub(self.guests.iter().map(|guest| guest.place.swapped).sum());
        let store_left = self
            .compressed
            .saturating_sub(self.guests.iter().map(|guest| guest.place.compressed).sum());
        let guest = &mut self.guests[step.guest.get() as usize];
        match step.action {
            Action::Balloon => {
                guest.asked += pages;
                self.tally.ballooned += pages;
            }
            Action::Release => guest.asked = guest.asked.saturating_sub(pages),
            Action::Share => self.tally.shared += guest.share(pages),
            Action::Compress => {
                let gone = guest.put_away(pages.min(store_left));
                guest.place.compressed += gone;
                self.tally.compressed += gone;
            }
            Action::Swap => {
                let gone = guest.put_away(pages.min(swap_left));
                guest.place.swapped += gone;
                self.tally.swapped += gone;
            }
            Action::Block => guest.blocked = true,
        }
    }

    fn fleet(&mut self) -> Result<Fleet> {
        let claims: Vec<Claim> = self.guests.iter().map(Guest::claim).collect();
        let own: u64 = self.guests.iter().map(|guest| guest.overhead).sum();
        let goal = self.machine.thresholds().goal();
        let left = Pages::new(self.total.saturating_sub(own + self.copies())).less(goal);
        let minimums: Pages = claims.iter().map(|claim| claim.min).sum();
        self.tally.strained_s += u64::from(left < minimums);
        let supply = Supply {
            memory: left.max(minimums),
            tax: self.tax,
        };
        Fleet::new(supply, &self.groups, &claims).context("the fleet cannot be planned for")
    }

    /// What the fleet's own breaks, as measured, would have to be reserved for.
    pub(crate) fn break_reserve(&self) -> Pages {
        let guests: Vec<_> = self
            .meters
            .iter()
            .zip(&self.guests)
            .map(|(meter, guest)| (meter, Pages::new(guest.place.shared)))
            .collect();
        Overbooking::default().reserve(&guests)
    }

    /// Why the guest at `index` has its target.
    pub(crate) fn explain(&mut self, index: usize) -> Option<String> {
        let fleet = self.fleet().ok()?;
        self.planner.plan(&fleet, &mut self.plan);
        Some(
            self.plan
                .explain_claim(&fleet, fleet.claims().get(index)?)?
                .to_string(),
        )
    }
}

/// The total at which `guests` pages are left besides the free memory aimed for.
fn total_for(guests: u64) -> u64 {
    let fits = |total: u64| total - Thresholds::published(Pages::new(total)).goal().get() >= guests;
    let mut total = guests;
    while !fits(total) {
        total += 1 + (guests >> 16);
    }
    while total > guests && fits(total - 1) {
        total -= 1;
    }
    total
}

fn group_id(groups: &[GroupPart], name: &str) -> Option<GroupId> {
    groups
        .iter()
        .position(|group| group.name == name)
        .map(|place| GroupId::new(place as u32))
}

fn groups(parts: &[GroupPart]) -> Result<Vec<Group>> {
    parts
        .iter()
        .map(|part| {
            let tax = part
                .tax
                .map(Tax::new)
                .transpose()
                .with_context(|| format!("group {:?}", part.name))?;
            Ok(Group {
                parent: part.parent.as_deref().and_then(|name| group_id(parts, name)),
                min: Pages::from_mib(part.min_mib),
                max: part.max_mib.map_or(Pages::LIMIT, Pages::from_mib),
                tax,
                ..Group::new(Shares::new(part.shares))
            })
        })
        .collect()
}
