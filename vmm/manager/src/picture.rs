//! A copy of the registry for those who want to see it: taken in a moment, looked at without its lock.

use std::collections::BTreeMap;

use allocator::{Fleet, Pages, Plan};
use page_share::LocalManager;

use super::groups::Groups;
use super::member::Member;
use super::names::Names;
use super::policy::{Round, Settings, Spent};
use super::registry::{ManagedProcess, Registry};

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
    pub guests: Vec<(Member, ManagedProcess)>,
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
    pub(super) fn of(registry: &Registry) -> Self {
        let guests = registry.guests();
        let round = registry.last_round().map(|round| Round {
            orders: Default::default(),
            ..*round
        });
        Self {
            settings: *registry.policy().settings(),
            goal: registry.policy().goal(),
            round,
            spent: registry.spent(),
            old_pools: registry.old_pools(),
            guests: guests
                .map(|(member, process)| (member.clone(), process.clone()))
                .collect(),
            groups: registry.groups().clone(),
            domains: registry.domains().clone(),
            plan: registry.policy().plan().clone(),
            fleet: registry.fleet().ok(),
            names: registry.names(),
        }
    }
}
