//! One round: from what the guests report to what each is told to do.
//!
//! Pure: values in, orders out. The allocator decides who should hold how much and by which means; this file knows
//! what counts as used, what is set aside, and how steps become [`Orders`].

use std::time::Duration;

use allocator::{
    Action, Claim, Fleet, FleetError, Group, GroupId, Ladder, Overbooking, Pages, Plan, Planner, Situation,
    State, StateMachine, Step, Supply, Tax, Thresholds,
};

use crate::link::Orders;
use crate::manager::limiter::{Granted, Limiter};
use crate::manager::member::Member;

/// Most of the budget set aside for sharing to come apart, in percent. Beyond it, gated growth takes over: a reserve
/// makes running short rare, the gate makes it harmless.
const RESERVE_PERCENT: u64 = 2;

/// One second.
const SECOND: Duration = Duration::from_secs(1);

/// Time between two rounds while the host is short of memory.
const SHORT_ROUND: Duration = Duration::from_millis(250);

/// Part of the budget that no guest may grow into: pools and the manager itself grow between two rounds.
const MARGIN: f64 = 0.005;

/// What the budget was spent on beside the guests' processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Pools of common copies, each page once.
    pub pools: Pages,
    /// The manager's own process.
    pub manager: Pages,
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
    /// Orders, in the order of the members.
    pub orders: Vec<Orders>,
    /// When the next round is due, where nobody asks for one earlier.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Planned {
    age: Duration,
    members: usize,
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

    /// The plan in force, for the fleet of the last round.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Free memory that is aimed for, the break reserve not counted.
    pub fn goal(&self) -> Pages {
        self.machine.thresholds().goal()
    }

    /// Makes the next round plan anew: limits or shares were changed.
    pub fn replan(&mut self) {
        self.planned = None;
    }

    /// The fleet as the allocator sees it: whether the budget keeps what was promised.
    ///
    /// # Errors
    /// When the minimums do not fit the budget, or the limits contradict each other.
    pub fn fleet(&self, spent: Spent, groups: &[Group], members: &[Member]) -> Result<Fleet, FleetError> {
        let (wished, most) = self.to_hand_out(spent, members);
        let claims: Vec<_> = members.iter().map(Member::claim).collect();
        // Promised minimums hold at the cost of the free memory aimed for, not beyond the budget.
        let memory = wished.max(promised(groups, &claims).min(most));
        self.supplied(memory, groups, &claims)
    }

    /// The fleet to plan for. Where what is beside the guests has grown until not even the minimums fit, these are what
    /// everybody gets, and the limits do the rest: without a plan the last one's larger targets would stay.
    ///
    /// # Errors
    /// When the limits contradict each other.
    fn fleet_as_it_is(
        &self,
        spent: Spent,
        groups: &[Group],
        members: &[Member],
    ) -> Result<Fleet, FleetError> {
        let (wished, _) = self.to_hand_out(spent, members);
        let claims: Vec<_> = members.iter().map(Member::claim).collect();
        self.supplied(wished.max(promised(groups, &claims)), groups, &claims)
    }

    /// Memory for guests: with what is to stay free set aside, and without.
    fn to_hand_out(&self, spent: Spent, members: &[Member]) -> (Pages, Pages) {
        let overhead = members.iter().map(Member::overhead).sum::<Pages>() + spent.pools + spent.manager;
        let most = self.settings.budget.less(overhead);
        let aside = self.reserve(members) + self.machine.thresholds().goal();
        (most.less(aside), most)
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
        for member in members.iter_mut() {
            member.pass(elapsed);
        }
        let free = self.free(spent, members);
        let coming: Pages = members.iter().map(Member::inflating).sum();
        let state = self.machine.observe(Pages::new(free.max(0) as u64));
        let fleet = self.fleet_as_it_is(spent, groups, members)?;
        if self.due(elapsed, members.len(), state) {
            self.planner.plan(&fleet, &mut self.plan);
        }
        let now = Situation {
            state,
            free: Pages::new((free + coming.get() as i64).max(0) as u64),
            goal: self.machine.thresholds().goal() + self.reserve(members),
            elapsed,
        };
        let mut steps = std::mem::take(&mut self.steps);
        self.ladder.decide(&fleet, &self.plan, now, &mut steps);
        self.second += elapsed;
        let mut orders = self.orders(&steps, members);
        let granted = self.limits(&fleet, spent).grant(members, &mut orders);
        self.steps = steps;
        Ok(Round {
            state,
            free,
            reserve: self.reserve(members),
            orders,
            next: match (granted, state) {
                (Granted::InPart, _) => Duration::ZERO,
                (Granted::All, State::High | State::Soft) => SECOND,
                (Granted::All, State::Hard | State::Low) => SHORT_ROUND,
            },
        })
    }

    /// Who may hold how much now.
    fn limits<'a>(&'a self, fleet: &'a Fleet, spent: Spent) -> Limiter<'a> {
        Limiter {
            memory: self.settings.budget.less(spent.pools + spent.manager),
            margin: self.settings.budget.part(MARGIN),
            state: self.machine.state(),
            targets: self.plan.targets(),
            fleet,
        }
    }

    /// Budget less everything that is used.
    fn free(&self, spent: Spent, members: &[Member]) -> i64 {
        let used = members.iter().map(|member| member.held).sum::<Pages>() + spent.pools + spent.manager;
        self.settings.budget.get() as i64 - used.get() as i64
    }

    /// What is set aside for sharing to come apart.
    pub(super) fn reserve(&self, members: &[Member]) -> Pages {
        let guests: Vec<_> = members
            .iter()
            .map(|member| (member.breaks(), member.shared()))
            .collect();
        let most = Pages::new(self.settings.budget.get() * RESERVE_PERCENT / 100);
        Overbooking::default().reserve(&guests).min(most)
    }

    /// Whether a new plan is due; if so, it counts as made.
    fn due(&mut self, elapsed: Duration, members: usize, state: State) -> bool {
        if let Some(planned) = &mut self.planned {
            planned.age += elapsed;
            if planned.age < self.settings.rebalance && planned.members == members && planned.state == state {
                return false;
            }
        }
        self.planned = Some(Planned {
            age: Duration::ZERO,
            members,
            state,
        });
        true
    }

    fn orders(&mut self, steps: &[Step], members: &mut [Member]) -> Vec<Orders> {
        let Settings {
            scan,
            sample,
            split_blocks,
            ..
        } = self.settings;
        let everyone = members.len().max(1);
        let full = self.second >= SECOND - SECOND / 16;
        if full {
            self.second = Duration::ZERO;
        }
        let mut orders = vec![
            Orders {
                scan_cpu: scan.cpu / everyone as f64,
                scan_pages_per_second: scan.pages_per_second / everyone as u64,
                split_blocks: if full { split_blocks } else { 0 },
                sample_pages: sample.pages,
                sample_seconds: sample.seconds,
                ..Orders::default()
            };
            members.len()
        ];
        for step in steps {
            let Some(index) = members.iter().position(|member| member.id == step.guest) else {
                continue;
            };
            let (member, order) = (&mut members[index], &mut orders[index]);
            match step.action {
                Action::Balloon => {
                    member.balloon_asked = (member.balloon_asked + step.pages).min(member.limits.max);
                }
                Action::Release => member.balloon_asked = member.balloon_asked.less(step.pages),
                // Sharing is what the scan does anyway, within its own limits, and always before these two.
                Action::Share => {}
                // Nor is the same page asked for twice.
                Action::Compress | Action::Swap if member.squeezing => {}
                Action::Compress => order.compress_pages = step.pages.get(),
                Action::Swap => order.swap_pages = step.pages.get(),
                // By its limit.
                Action::Block => {}
            }
        }
        for (order, member) in orders.iter_mut().zip(members.iter_mut()) {
            member.squeezing |= order.compress_pages > 0 || order.swap_pages > 0;
        }
        for (order, member) in orders.iter_mut().zip(members) {
            order.balloon_pages = member.balloon_asked.get();
        }
        orders
    }
}

/// Private memory that was promised: to each guest what it does not share of its minimum, and to each group what its
/// members have less than its own.
fn promised(groups: &[Group], claims: &[Claim]) -> Pages {
    let private = |claim: &Claim| claim.min.less(claim.shared);
    let guests: Pages = claims.iter().map(private).sum();
    let beyond = groups.iter().enumerate().map(|(place, group)| {
        let id = GroupId::new(place as u32);
        let members = claims.iter().filter(|claim| claim.group == Some(id));
        group.min.less(members.map(private).sum())
    });
    guests + beyond.sum()
}

#[cfg(test)]
mod tests;
