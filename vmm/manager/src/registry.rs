//! The registry of admitted guests: the process of each, its limits, its sharing domain, and the policy over all.
//!
//! A guest is one number, [`GuestId`], given once and never again. What is known of it is found by that number and by
//! no position in any list.

mod admitting;
mod changes;
mod returning;
mod swapping;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use allocator::{Admission, AdmissionError, Fleet, FleetError, GroupId, GuestId, Pages, Reservation};
use log::Level;
use page_share::PoolLimit;

use crate::groups::{Groups, whole_pages};
pub use crate::guest_process::{ManagedProcess, Origin, ProcessId};
use crate::member::{Limits, Member};
use crate::names::Names;
use crate::own_swap::OwnSwap;
use crate::policy::{Gives, Policy, Round, Settings, Spent};
pub use crate::refusal::{AdmitError, ChangeError, SwapShortage};
use crate::survey::{Measured, Surveyed};
pub use admitting::Applicant;
use levy_protocol::api::Phase;
use levy_protocol::frame_space::{FrameSpace, PAGE_SIZE};
pub(crate) use levy_protocol::link::is_name;
use levy_protocol::link::{self, LimitStatus, Report};
pub use returning::Fate;
use returning::Unwatched;

/// Memory that a guest's process needs whatever the guest's size, bytes: 5 MiB of private memory.
const OVERHEAD: u64 = 5 << 20;

/// Memory that it needs per guest memory for page tables and page states, in thousandths.
const OVERHEAD_PER_MILLE: u64 = 6;

/// The sharing domain of a guest that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftDomain {
    /// Its name.
    pub name: String,
    /// No other guest is in it.
    pub is_empty: bool,
}

/// A guest as its sharing domain knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharer {
    /// The guest.
    pub guest: GuestId,
    /// Its domain's name.
    pub domain: String,
    /// Its page numbers, the hole in its memory included.
    pub frames: u32,
}

/// All guests and the policy over them.
#[derive(Debug)]
pub struct Registry {
    policy: Policy,
    groups: Groups,
    /// In the order of admission, which is that of their numbers.
    members: Vec<Member>,
    /// For each member, its process.
    processes: BTreeMap<GuestId, ManagedProcess>,
    /// Swap and compression that may be promised.
    backing: Pages,
    /// A process may run several guests.
    several_in_one: bool,
    /// Guests of the manager before that could not be looked at yet.
    unwatched: Vec<Unwatched>,
    /// Time for which nothing is handed out beyond promises as long as a survivor has not been heard.
    settling: Duration,
    next: u64,
    round: Option<Round>,
    /// What pools and the manager itself held when that was last counted.
    spent: Spent,
    /// Of that, pools of managers that are gone.
    old_pools: Pages,
    /// There may be more of those.
    misses_pools: bool,
    /// What the log is to say.
    remarks: Vec<(Level, String)>,
}

impl Registry {
    /// No guest yet. `backing` is how much swap and compression may be promised.
    pub fn new(settings: Settings, backing: Pages) -> Self {
        Self {
            policy: Policy::new(settings),
            groups: Groups::default(),
            members: Vec::new(),
            processes: BTreeMap::new(),
            backing,
            several_in_one: false,
            unwatched: Vec::new(),
            settling: Duration::ZERO,
            next: 0,
            round: None,
            spent: Spent::default(),
            old_pools: Pages::ZERO,
            misses_pools: false,
            remarks: Vec::new(),
        }
    }

    /// Lets one process run several guests from now on. Each is charged with all that the process holds, so this is for
    /// programs that are guests and manager at once, as tests are.
    pub fn allow_several_in_one_process(&mut self) {
        self.several_in_one = true;
    }

    /// Gives a guest the next number.
    fn enter(&mut self, limits: Limits, process: ManagedProcess) -> GuestId {
        let id = GuestId::new(self.next);
        self.next += 1;
        self.members.push(Member::new(id, limits));
        self.processes.insert(id, process);
        id
    }

    /// Forgets guest `id`, whose process is dead, with its limits. Returns its sharing domain, where it was in one.
    pub fn remove_dead(&mut self, id: GuestId) -> Option<LeftDomain> {
        self.members.retain(|member| member.id != id);
        self.groups.prune(&mut self.members);
        let name = self.processes.remove(&id)?.sharing?;
        let is_empty = !self.shares_in(&name);
        Some(LeftDomain { name, is_empty })
    }

    /// Whether a guest is in the sharing domain called `name`.
    pub fn shares_in(&self, name: &str) -> bool {
        let mut domains = self.processes.values().map(|process| &process.sharing);
        domains.any(|domain| domain.as_deref() == Some(name))
    }

    /// A guest as its sharing domain knows it; none while its process is kept out.
    pub fn sharer(&self, now: Instant, guest: GuestId) -> Option<Sharer> {
        let process = self.processes.get(&guest)?;
        if process.penalty.barred(now).is_some() {
            return None;
        }
        // Its page numbers reach beyond its number of pages: there is a hole in its memory.
        let space = frame_space(self.member(guest)?.limits.max)?;
        Some(Sharer {
            guest,
            domain: process.sharing.clone()?,
            frames: space.frames(),
        })
    }

    /// Takes in a guest's report, and says whether it can be true. Impossible ones are dropped, and so are those of guests
    /// that are gone.
    pub fn on_report(&mut self, id: GuestId, report: Report) -> bool {
        let Some(member) = find_mut(&mut self.members, id) else {
            return true;
        };
        let (paused, room) = (report.paused, report.swap);
        if !member.on_report(report) {
            return false;
        }
        if let Some(process) = self.processes.get_mut(&id) {
            // A stop that was asked for stays; any client may have paused it at its control socket.
            process.phase = match (process.phase, paused) {
                (Phase::Stopping, _) => Phase::Stopping,
                (_, true) => Phase::Paused,
                (_, false) => Phase::Running,
            };
            if let Some(room) = room {
                process.swap = Some(match process.swap {
                    Some(swap) => swap.now(room),
                    // Its hello said nothing of it.
                    None => OwnSwap::new(room, None),
                });
            }
            process.brought(member.limits, &member.pages());
        }
        true
    }

    /// Takes in what a guest's process says about its limit. Whether it waits for memory.
    pub fn on_limit_status(&mut self, id: GuestId, standing: LimitStatus) -> bool {
        let Some(member) = find_mut(&mut self.members, id) else {
            return false;
        };
        let waited = member.standing.waiting > 0;
        member.on_limit_status(standing);
        standing.waiting > 0 || waited
    }

    /// The processes to ask the kernel about before a round.
    pub fn survey(&self) -> Vec<Surveyed> {
        let processes = self.guests().map(|(member, process)| Surveyed {
            id: member.id,
            pid: process.id.pid,
            size: member.limits.max,
            pools: (process.origin != Origin::Survivor).then(|| member.report.old_pools.clone()),
        });
        processes.collect()
    }

    /// Takes in what the kernel said. Guests that came meanwhile keep what is known of them.
    pub fn take_in(&mut self, measured: &Measured) {
        for &(id, counted) in &measured.counted {
            if let Some(member) = find_mut(&mut self.members, id) {
                member.count(counted);
            }
        }
        self.old_pools = measured.old_pools;
        self.misses_pools = measured.misses_pools;
        self.spent = Spent {
            pools: measured.pools + measured.old_pools,
            manager: measured.manager,
        };
    }

    /// One round over all guests: plans, and remembers the orders.
    ///
    /// # Errors
    /// When the limits contradict each other, which admission and [`Registry::set`] rule out.
    pub fn round(&mut self, elapsed: Duration) -> Result<&Round, FleetError> {
        let spent = self.spent();
        let gives = match self.settle_down(elapsed) {
            true => Gives::All,
            false => Gives::Promises,
        };
        let round =
            self.policy
                .round_giving(gives, elapsed, spent, (self.groups.list(), &mut self.members))?;
        for (id, process) in &mut self.processes {
            process.orders = round.orders.get(id).copied().unwrap_or_default();
        }
        Ok(self.round.insert(round))
    }

    /// A guest's limits in the words of the link.
    pub fn limits(&self, id: GuestId) -> Option<link::Limits> {
        let limits = self.member(id)?.limits;
        Some(link::Limits {
            min: limits.min.get().saturating_mul(4096),
            shares: limits.shares.get(),
            group: limits.group.and_then(|group| self.groups.limits(group)),
        })
    }

    /// The fleet as the allocator sees it now.
    ///
    /// # Errors
    /// When the limits contradict each other, which admission and [`Registry::set`] rule out.
    pub fn fleet(&self) -> Result<Fleet, FleetError> {
        self.policy.fleet(self.spent(), self.groups.list(), &self.members)
    }

    fn keeps_promises(&self) -> Result<(), FleetError> {
        self.policy
            .keeps_promises(self.spent(), self.groups.list(), &self.members)
    }

    /// `text` with guests and groups called by their names instead of the allocator's numbers.
    pub fn named(&self, text: &str) -> String {
        self.names().put_into(text)
    }

    /// The same where the next guest to be admitted would be called `applicant`.
    pub(super) fn named_with(&self, applicant: &str, text: &str) -> String {
        let mut names = self.names();
        names.guests.insert(GuestId::new(self.next), applicant.to_owned());
        names.put_into(text)
    }

    /// The names of guests and groups.
    pub(super) fn names(&self) -> Names {
        let guests = self
            .processes
            .iter()
            .map(|(id, process)| (*id, process.name.clone()));
        let groups = self.groups.named().enumerate();
        Names {
            guests: guests.collect(),
            groups: groups
                .map(|(place, (name, _))| (GroupId::new(place as u32), name.to_owned()))
                .collect(),
        }
    }

    /// All guests, in the order of admission.
    pub fn guests(&self) -> impl Iterator<Item = (&Member, &ManagedProcess)> {
        self.members
            .iter()
            .filter_map(|member| Some((member, self.processes.get(&member.id)?)))
    }

    /// The guest called `name`.
    pub fn find(&self, name: &str) -> Option<GuestId> {
        let mut processes = self.processes.iter();
        processes
            .find(|(_, process)| process.name == name)
            .map(|(&id, _)| id)
    }

    /// One guest as the policy knows it.
    pub fn member(&self, id: GuestId) -> Option<&Member> {
        let place = self.members.binary_search_by_key(&id, |member| member.id);
        self.members.get(place.ok()?)
    }

    /// One guest's process.
    pub fn process_mut(&mut self, id: GuestId) -> Option<&mut ManagedProcess> {
        self.processes.get_mut(&id)
    }

    /// The groups.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The policy: settings and plan.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The last round.
    pub fn last_round(&self) -> Option<&Round> {
        self.round.as_ref()
    }

    /// What the budget is spent on besides the guests' processes, as last counted.
    pub fn spent(&self) -> Spent {
        self.spent
    }

    /// What pools of managers that are gone occupied when that was last counted, each once.
    pub fn old_pools(&self) -> Pages {
        self.old_pools
    }

    fn admission(&self) -> Admission {
        // What guests had swapped before this manager measured how much is free is not to be found free once more.
        let brought: Pages = self.processes.values().map(ManagedProcess::swapped_before).sum();
        let backing = (self.backing + brought).min(Pages::LIMIT);
        self.policy.admission(self.spent, &self.members, backing)
    }

    /// Each guest's minimum, with its group.
    fn minimums(&self) -> impl Iterator<Item = (Option<GroupId>, Pages)> {
        self.minimums_with(None)
    }

    /// The same where the limits of one guest are others.
    fn minimums_with(
        &self,
        other: Option<(GuestId, Limits)>,
    ) -> impl Iterator<Item = (Option<GroupId>, Pages)> {
        let limits = self.members.iter().map(move |member| match other {
            Some((id, limits)) if id == member.id => limits,
            _ => member.limits,
        });
        limits.map(|limits| (limits.group, limits.min))
    }

    /// Whether all that was promised fits the budget, one guest after the other, then the groups.
    fn promises(&self) -> Result<(), AdmissionError> {
        self.all_fit(self.reservations())
    }

    /// The same for what guests may keep as `promised`.
    fn all_fit(&self, mut promised: Vec<Reservation>) -> Result<(), AdmissionError> {
        let admission = self.admission();
        let groups = self.groups.promised(self.minimums());
        promised.extend(groups.into_iter().filter(|group| group.max > Pages::ZERO));
        for (index, applicant) in promised.iter().enumerate() {
            admission.check(&promised[..index], applicant)?;
        }
        Ok(())
    }

    fn reservations(&self) -> Vec<Reservation> {
        self.members
            .iter()
            .map(|member| reservation(member.id, member.limits))
            .collect()
    }

    /// How many pages the pool of a new domain may hold until the next round says otherwise.
    pub fn first_pool_limit(&self) -> PoolLimit {
        let pages = u32::try_from(self.policy.margin().get()).unwrap_or(u32::MAX);
        PoolLimit { pages, alone: pages }
    }

    /// Lines for the log since this was last asked.
    pub(super) fn take_remarks(&mut self) -> Vec<(Level, String)> {
        std::mem::take(&mut self.remarks)
    }
}

/// `members` have the order of their numbers.
fn find_mut(members: &mut [Member], id: GuestId) -> Option<&mut Member> {
    let place = members.binary_search_by_key(&id, |member| member.id).ok()?;
    members.get_mut(place)
}

fn reservation(guest: GuestId, limits: Limits) -> Reservation {
    let bytes = limits.max.get().saturating_mul(4096);
    Reservation {
        guest,
        min: limits.min,
        max: limits.max,
        overhead: whole_pages(OVERHEAD + bytes / 1000 * OVERHEAD_PER_MILLE),
    }
}

/// The page numbers of a guest with this many pages of RAM.
fn frame_space(ram: Pages) -> Option<FrameSpace> {
    FrameSpace::of_ram(ram.get().checked_mul(PAGE_SIZE)?)
}

#[cfg(test)]
mod tests;
