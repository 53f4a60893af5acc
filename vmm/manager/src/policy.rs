//! One round: from what the guests report to what each is told to do.
//!
//! Pure: values in, orders out; time is an argument. Plans, limits and orders belong to guests by their numbers, never by
//! their places in a list: guests come and go between two rounds. The allocator decides who should hold how much and by which means; this file knows
//! what counts as used, what is set aside, and how steps become [`Orders`].

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use allocator::{
    Action, Admission, Claim, Fleet, FleetError, Group, GuestId, Ladder, Overbooking, Pages, Plan, Planner,
    Situation, State, StateMachine, Step, Supply, Tax, Thresholds,
};

pub use crate::limiter::Gives;
use crate::limiter::{Grant, Granted, Limiter};
use crate::member::Member;
use crate::pool_room::{PoolRoom, Promised};
use levy_protocol::link::Orders;

/// Most of the budget set aside for sharing to come apart, in percent. Beyond it, gated growth takes over: a reserve
/// makes running short rare, the gate makes it harmless.
const RESERVE_PERCENT: u64 = 2;

/// One second.
const SECOND: Duration = Duration::from_secs(1);

/// Time between two rounds while the host is short of memory.
const SHORT_ROUND: Duration = Duration::from_millis(250);

/// Part of the budget that no guest may grow into: pools and the manager itself grow between two rounds.
const MARGIN: f64 = 0.005;

/// What the budget was spent on besides the guests' processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Pools of common copies, each page once.
    pub pools: Pages,
    /// The manager's own process.
    pub manager: Pages,
}

/// Seconds that may lie between two plans.
pub const REBALANCE_SECONDS: RangeInclusive<f64> = 0.1..=86_400.0;

/// The time between two plans that `seconds` is.
///
/// # Errors
/// Which ones there are, for people, where it is none.
pub fn rebalance(seconds: f64) -> Result<Duration, String> {
    let (least, most) = (REBALANCE_SECONDS.start(), REBALANCE_SECONDS.end());
    match REBALANCE_SECONDS.contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err(format!(
            "{seconds:?} s is out of range; it goes from {least} to {most} s"
        )),
    }
}

/// What an operator may change while guests run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Memory for everything.
    pub budget: Pages,
    /// The idle-memory tax.
    pub tax: Tax,
    /// Time between two plans where nothing forces one earlier.
    pub rebalance: Duration,
    /// Scanning allowed to all guests together: part of one CPU, and pages a second.
    pub scan: Scan,
    /// Sampling of each guest.
    pub sample: Sampling,
    /// Blocks of 2 MiB that each guest puts under management in a second, from when it is up. Until then they may be
    /// huge pages, which are faster than small ones and cannot be shared.
    pub split_blocks: u32,
}

/// Limits of scanning.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scan {
    /// Part of one CPU, 0 to 1 and more.
    pub cpu: f64,
    /// Pages a second.
    pub pages_per_second: u64,
}

/// How activity is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Pages in one sample.
    pub pages: u32,
    /// Seconds that one sample lasts.
    pub seconds: u32,
}

impl Settings {
    /// The published settings for a budget: tax 75 %, a plan every 15 s, 100 pages sampled per 30 s.
    pub fn new(budget: Pages) -> Self {
        Self {
            budget,
            tax: Tax::DEFAULT,
            rebalance: Duration::from_secs(15),
            scan: Scan {
                cpu: 0.2,
                pages_per_second: 200_000,
            },
            split_blocks: 16,
            sample: Sampling {
                pages: 100,
                seconds: 30,
            },
        }
    }
}

/// What one round found and decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// The host's state.
    pub state: State,
    /// Budget not used; negative by how much it is exceeded.
    pub free: i64,
    /// Kept free for sharing to come apart.
    pub reserve: Pages,
    /// Every member's orders.
    pub orders: BTreeMap<GuestId, Orders>,
    /// How large pools may become.
    pub pools: PoolRoom,
    /// When the next round is due, unless one is asked for earlier.
    pub next: Duration,
}

/// The policy with what it remembers between rounds.
#[derive(Debug)]
pub struct Policy {
    settings: Settings,
    machine: StateMachine,
    ladder: Ladder,
    planner: Planner,
    plan: Plan,
    planned: Option<Planned>,
    steps: Vec<Step>,
    /// Time since orders that stand for a second were given.
    second: Duration,
}

/// When and for whom the plan in force was made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned {
    age: Duration,
    guests: Vec<GuestId>,
    state: State,
}

impl Policy {
    /// A policy in the high state with no plan yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            machine: StateMachine::new(Thresholds::published(settings.budget)),
            settings,
            ladder: Ladder::default(),
            planner: Planner::default(),
            plan: Plan::default(),
            planned: None,
            steps: Vec::new(),
            second: SECOND,
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes the settings; the next round plans anew.
    pub fn set(&mut self, settings: Settings) {
        if settings.budget != self.settings.budget {
            self.machine = StateMachine::new(Thresholds::published(settings.budget));
        }
        self.settings = settings;
        self.planned = None;
    }

    /// The plan in force. It knows the guests of the round in which it was made.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Free memory that is aimed for, the break reserve not counted.
    pub fn goal(&self) -> Pages {
        self.machine.thresholds().goal()
    }

    /// Part of the budget that no guest may grow into.
    pub(super) fn margin(&self) -> Pages {
        self.settings.budget.part(MARGIN)
    }

    /// Makes the next round plan anew: limits or shares were changed.
    pub fn replan(&mut self) {
        self.planned = None;
    }

    /// What an admission is tested against: the budget less the free memory that is aimed for and what the manager
    /// itself takes. `backing` is how much swap and compression may be promised.
    pub fn admission(&self, spent: Spent, members: &[Member], backing: Pages) -> Admission {
        Admission {
            memory: self.settings.budget.less(self.goal() + spent.manager),
            backing,
            break_reserve: self.reserve(members),
        }
    }

    /// The fleet as the allocator sees it.
    ///
    /// # Errors
    /// When the limits contradict each other, which admission rules out.
    pub fn fleet(&self, spent: Spent, groups: &[Group], members: &[Member]) -> Result<Fleet, FleetError> {
        let aside = self.reserve(members) + self.goal();
        let memory = self.to_hand_out(spent, members).less(aside);
        self.supplied(memory, groups, &claims(members, SECOND))
    }

    /// Whether the budget keeps what was promised: minimums hold at the cost of the free memory aimed for, not beyond
    /// the budget.
    ///
    /// # Errors
    /// When the minimums do not fit the budget, or the limits contradict each other.
    pub fn keeps_promises(
        &self,
        spent: Spent,
        groups: &[Group],
        members: &[Member],
    ) -> Result<(), FleetError> {
        let memory = self.to_hand_out(spent, members);
        self.supplied(memory, groups, &claims(members, SECOND))?
            .covers_minimums()
    }

    /// Memory for guests' pages: the budget less what is spent on anything else.
    fn to_hand_out(&self, spent: Spent, members: &[Member]) -> Pages {
        let overhead = members.iter().map(Member::overhead).sum::<Pages>() + spent.pools + spent.manager;
        self.settings.budget.less(overhead)
    }

    fn supplied(&self, memory: Pages, groups: &[Group], claims: &[Claim]) -> Result<Fleet, FleetError> {
        let supply = Supply {
            memory,
            tax: self.settings.tax,
        };
        Fleet::new(supply, groups, claims)
    }

    /// One round, `elapsed` after the last.
    ///
    /// # Errors
    /// When the limits contradict each other.
    pub fn round(
        &mut self,
        elapsed: Duration,
        spent: Spent,
        groups: &[Group],
        members: &mut [Member],
    ) -> Result<Round, FleetError> {
        self.round_giving(Gives::All, elapsed, spent, (groups, members))
    }

    /// The same, in which no more is handed out than it `gives`.
    ///
    /// # Errors
    /// When the limits contradict each other.
    pub fn round_giving(
        &mut self,
        gives: Gives,
        elapsed: Duration,
        spent: Spent,
        (groups, members): (&[Group], &mut [Member]),
    ) -> Result<Round, FleetError> {
        for member in members.iter_mut() {
            member.pass(elapsed, self.settings.sample.pages);
        }
        let ((free, state), reserve) = (self.observe(spent, members), self.reserve(members));
        let next = match state {
            State::High | State::Soft => SECOND,
            State::Hard | State::Low => SHORT_ROUND,
        };
        let goal = self.goal() + reserve;
        let memory = self.to_hand_out(spent, members).less(goal);
        let fleet = self.supplied(memory, groups, &claims(members, next))?;
        if self.due(elapsed, members, state) {
            self.planner.plan(&fleet, &mut self.plan);
        }
        let coming: Pages = members.iter().map(|member| member.coming(next)).sum();
        let now = Situation {
            state,
            free: Pages::new((free + coming.get() as i64).max(0) as u64),
            goal,
            elapsed,
        };
        let mut steps = std::mem::take(&mut self.steps);
        self.ladder.decide(&fleet, &self.plan, now, &mut steps);
        self.second += elapsed;
        let mut orders = self.orders(&steps, members);
        self.steps = steps;
        let (grants, granted) = self.limiter(gives, spent, groups).grant(members);
        limit(members, &grants, &mut orders);
        Ok(Round {
            state,
            free,
            reserve,
            orders,
            pools: self.pool_room(elapsed, spent, groups, members),
            next: match granted {
                Granted::InPart => Duration::ZERO,
                Granted::All => next,
            },
        })
    }

    /// Who may hold how much now.
    fn limiter<'a>(&'a self, gives: Gives, spent: Spent, groups: &'a [Group]) -> Limiter<'a> {
        Limiter {
            memory: self.settings.budget.less(spent.pools + spent.manager),
            margin: self.margin(),
            gives,
            state: self.machine.state(),
            plan: &self.plan,
            groups,
        }
    }

    /// How large pools may become in the time until the next round, which `elapsed` says roughly. The margin is there
    /// for what they grow by between two rounds.
    fn pool_room(&self, elapsed: Duration, spent: Spent, groups: &[Group], members: &[Member]) -> PoolRoom {
        let margin = self.margin();
        let handed_out = members.iter().map(Member::in_force).sum();
        let step = margin.part(elapsed.as_secs_f64().min(1.0));
        let promised = Promised::to(members, groups);
        PoolRoom::new(
            self.settings.budget.less(margin),
            spent,
            (handed_out, step),
            promised,
        )
    }

    /// Free memory, and the state that follows.
    pub(super) fn observe(&mut self, spent: Spent, members: &[Member]) -> (i64, State) {
        let free = self.free(spent, members);
        (free, self.machine.observe(Pages::new(free.max(0) as u64)))
    }

    /// Budget less everything that is used.
    fn free(&self, spent: Spent, members: &[Member]) -> i64 {
        let used = members.iter().map(|member| member.held).sum::<Pages>() + spent.pools + spent.manager;
        self.settings.budget.get() as i64 - used.get() as i64
    }

    /// What is set aside for sharing to come apart.
    fn reserve(&self, members: &[Member]) -> Pages {
        let guests: Vec<_> = members
            .iter()
            .map(|member| (member.breaks(), member.shared()))
            .collect();
        let most = Pages::new(self.settings.budget.get() * RESERVE_PERCENT / 100);
        Overbooking::default().reserve(&guests).min(most)
    }

    /// Whether a new plan is due; if so, it counts as made.
    fn due(&mut self, elapsed: Duration, members: &[Member], state: State) -> bool {
        let guests = || members.iter().map(|member| member.id);
        if let Some(planned) = &mut self.planned {
            planned.age += elapsed;
            let fresh = planned.age < self.settings.rebalance && planned.state == state;
            if fresh && planned.guests.iter().copied().eq(guests()) {
                return false;
            }
        }
        self.planned = Some(Planned {
            age: Duration::ZERO,
            guests: guests().collect(),
            state,
        });
        true
    }

    /// What every guest is told whatever it holds.
    fn usual_orders(&mut self, guests: usize) -> Orders {
        let Settings {
            scan,
            sample,
            split_blocks,
            ..
        } = self.settings;
        let full = self.second >= SECOND - SECOND / 16;
        if full {
            self.second = Duration::ZERO;
        }
        let guests = guests.max(1);
        Orders {
            scan_cpu: scan.cpu / guests as f64,
            scan_pages_per_second: scan.pages_per_second / guests as u64,
            split_blocks: if full { split_blocks } else { 0 },
            sample_pages: sample.pages,
            sample_seconds: sample.seconds,
            ..Orders::default()
        }
    }

    fn orders(&mut self, steps: &[Step], members: &mut [Member]) -> BTreeMap<GuestId, Orders> {
        let usual = self.usual_orders(members.len());
        let mut told: BTreeMap<GuestId, (&mut Member, Orders)> = members
            .iter_mut()
            .map(|member| (member.id, (member, usual)))
            .collect();
        for step in steps {
            if let Some((member, orders)) = told.get_mut(&step.guest) {
                follow(step, member, orders);
            }
        }
        let finished = told.into_iter().map(|(id, (member, mut orders))| {
            member.squeezing |= orders.compress_pages > 0 || orders.swap_pages > 0;
            orders.balloon_pages = member.balloon_asked.get();
            (id, orders)
        });
        finished.collect()
    }
}

/// Makes a step of the ladder an order to its guest.
fn follow(step: &Step, member: &mut Member, orders: &mut Orders) {
    match step.action {
        Action::Balloon => {
            member.balloon_asked = (member.balloon_asked + step.pages).min(member.limits.max);
        }
        Action::Release => member.balloon_asked = member.balloon_asked.less(step.pages),
        // Sharing is what the scan does anyway, within its own limits, and always before these two.
        Action::Share => {}
        // Nor is the same page asked for twice.
        Action::Compress | Action::Swap if member.squeezing => {}
        Action::Compress => orders.compress_pages = step.pages.get(),
        Action::Swap => orders.swap_pages = step.pages.get(),
        // By its limit.
        Action::Block => {}
    }
}

/// Gives every guest its limit.
fn limit(members: &mut [Member], grants: &BTreeMap<GuestId, Grant>, orders: &mut BTreeMap<GuestId, Orders>) {
    for member in members {
        if let (Some(grant), Some(orders)) = (grants.get(&member.id), orders.get_mut(&member.id)) {
            orders.limit_bytes = Some(member.limit(grant.limit));
            orders.owed_bytes = grant.owed.get().saturating_mul(4096);
        }
    }
}

fn claims(members: &[Member], next: Duration) -> Vec<Claim> {
    members.iter().map(|member| member.claim(next)).collect()
}

#[cfg(test)]
mod tests;
