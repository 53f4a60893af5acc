//! A copy of the registry for those who want to see it: taken in a moment, looked at without its lock.

use std::collections::BTreeMap;

use allocator::{Fleet, Pages, Plan};
use page_share::LocalManager;

use super::groups::Groups;
use super::member::Member;
use super::names::Names;
use super::policy::{Round, Settings, Spent};
use super::roster::{Roster, Seat};

/// All that the API shows of guests.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The settings in force.
    pub settings: Settings,
    /// Free memory that is aimed for.
    pub goal: Pages,
    /// The last round, its orders left out.
    pub round: Option<Round>,
    /// What the budget is spent on besides guests' processes.
    pub spent: Spent,
    /// Of that, pools of managers that are gone.
    pub old_pools: Pages,
    /// All guests, in the order of admission.
    pub guests: Vec<(Member, Seat)>,
    /// The groups.
    pub groups: Groups,
    /// The sharing domains.
    pub domains: BTreeMap<String, LocalManager>,
    /// The plan in force, and the fleet as it is now where one can be planned for.
    pub plan: Plan,
    /// See `plan`.
    pub fleet: Option<Fleet>,
    /// Who is called how.
    pub names: Names,
}

impl Picture {
    pub(super) fn of(roster: &Roster) -> Self {
        let guests = roster.guests();
        let round = roster.last_round().map(|round| Round {
            orders: Default::default(),
            ..*round
        });
        Self {
            settings: *roster.policy().settings(),
            goal: roster.policy().goal(),
            round,
            spent: roster.spent(),
            old_pools: roster.old_pools(),
            guests: guests
                .map(|(member, seat)| (member.clone(), seat.clone()))
                .collect(),
            groups: roster.groups().clone(),
            domains: roster.domains().clone(),
            plan: roster.policy().plan().clone(),
            fleet: roster.fleet().ok(),
            names: roster.names(),
        }
    }
}
