//! Who is here: every admitted guest, its process and its place in the policy.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use allocator::{
    Admission, AdmissionError, Fleet, FleetError, Group, GroupId, GuestId, Pages, Reservation, Shares,
};
use page_share::{Dead, GuestProcess, LocalManager};

use crate::api::types::Phase;
use crate::layout::{FrameSpace, PAGE_SIZE};
use crate::link::{self, Hello, Orders, Report, Sharing, Standing};
use crate::manager::census::{self, Census, Held};
use crate::manager::groups::{Groups, whole_pages};
use crate::manager::incidents::Conduct;
use crate::manager::member::{Limits, Member};
use crate::manager::policy::{Policy, Round, Settings, Spent};
pub(crate) use crate::manager::refusal::is_name;
pub use crate::manager::refusal::{AdmitError, ChangeError};
pub use crate::manager::seat::Seat;

/// Memory that a guest's process needs whatever the guest's size, bytes: 5 MiB of private memory.
const OVERHEAD: u64 = 5 << 20;

/// Memory that it needs per guest memory for page tables and page states, in thousandths.
const OVERHEAD_PER_MILLE: u64 = 6;

/// Pages that one domain's pool may hold; a pool never outgrows the budget, this only bounds its tables.
const POOL_LIMIT: u32 = 1 << 24;

/// All guests, their domains and the policy over them.
#[derive(Debug)]
pub struct Roster {
    policy: Policy,
    groups: Groups,
    /// In the order of admission; `seats` has the same order.
    members: Vec<Member>,
    seats: Vec<Seat>,
    census: Census,
    domains: BTreeMap<String, LocalManager>,
    /// Swap and compression that may be promised.
    backing: Pages,
    next: u64,
    old_pools: Pages,
    round: Option<Round>,
}

impl Roster {
    /// Nobody yet. `backing` is how much swap and compression may be promised.
    pub fn new(settings: Settings, backing: Pages) -> Self {
        Self {
            policy: Policy::new(settings),
            groups: Groups::default(),
            members: Vec::new(),
            seats: Vec::new(),
            census: Census::default(),
            domains: BTreeMap::new(),
            backing,
            next: 0,
            old_pools: Pages::ZERO,
            round: None,
        }
    }

    /// Admits a guest, or says why not. A guest that was cut off and comes back is who it was.
    ///
    /// # Errors
    /// See [`AdmitError`]; nothing has changed then.
    pub fn admit(&mut self, hello: &Hello, process: GuestProcess) -> Result<GuestId, AdmitError> {
        let protocol = hello.range().common()?;
        if !is_name(&hello.name) {
            return Err(AdmitError::Name(hello.name.clone()));
        }
        if let Some(index) = self.seats.iter().position(|seat| seat.name == hello.name) {
            let seat = &mut self.seats[index];
            let barred = seat.conduct.barred().filter(|_| process.is_still(&seat.process));
            if let Some(seconds) = barred {
                return Err(AdmitError::Barred { seconds });
            }
            if seat.connected || !process.is_still(&seat.process) {
                return Err(AdmitError::Taken(hello.name.clone()));
            }
            // The same process, after its connection broke: it never ceased to be here.
            seat.connected = true;
            seat.protocol = protocol;
            return Ok(self.members[index].id);
        }
        if hello.shares == 0 {
            return Err(AdmitError::Shares);
        }
        let settled = self.settle(hello);
        if settled.is_err() {
            self.groups.prune(&mut self.members);
        }
        let (limits, sharing) = settled?;
        let id = GuestId::new(self.next);
        self.next += 1;
        self.members.push(Member::new(id, limits));
        self.seats.push(Seat {
            name: hello.name.clone(),
            protocol,
            pid: process.pid(),
            process,
            sharing,
            since: Instant::now(),
            connected: true,
            orders: Orders::default(),
            control: hello.control.clone(),
            fleet: hello.fleet.clone(),
            phase: Phase::Running,
            conduct: Conduct::default(),
        });
        Ok(id)
    }

    /// The limits of a guest that fits, and its place in a sharing domain.
    fn settle(&mut self, hello: &Hello) -> Result<(Limits, Option<String>), AdmitError> {
        let group = hello
            .group
            .as_ref()
            .map(|group| self.groups.enter(group))
            .transpose()?;
        let limits = Limits {
            min: whole_pages(hello.min),
            max: whole_pages(hello.size),
            shares: Shares::new(hello.shares),
            group,
        };
        let minimums = || self.minimums().chain([(group, limits.min)]);
        self.groups.fit(minimums())?;
        let mut others = self.reservations();
        others.extend(self.groups.promised(minimums()));
        self.admission()
            .check(&others, &reservation(GuestId::new(self.next), limits))?;
        let sharing = self.join(&hello.sharing, limits.max)?;
        Ok((limits, sharing))
    }

    /// Forgets the guest whose process is `dead`: its limits, its references, and its domain with the last one in it.
    pub fn bury(&mut self, dead: &Dead) {
        let Some(index) = self.seats.iter().position(|seat| dead.is_of(&seat.process)) else {
            return;
        };
        self.members.remove(index);
        let seat = self.seats.remove(index);
        self.groups.prune(&mut self.members);
        let Some(name) = seat.sharing else { return };
        if let Some(domain) = self.domains.get(&name) {
            domain.with(|domain| domain.detach(dead));
        }
        if self.seats.iter().all(|seat| seat.sharing.as_ref() != Some(&name)) {
            self.domains.remove(&name);
        }
    }

    /// The sharing domain of the guest that `process` runs, and who it is there; none while it is kept out.
    pub fn peer(&self, process: &GuestProcess) -> Option<(GuestId, LocalManager, page_share::Peer)> {
        let index = self
            .seats
            .iter()
            .position(|seat| process.is_still(&seat.process))?;
        let seat = &self.seats[index];
        if seat.conduct.barred().is_some() {
            return None;
        }
        let domain = self.domains.get(seat.sharing.as_ref()?)?;
        // Its page numbers reach beyond its number of pages: there is a hole in its memory.
        let space = frame_space(self.members[index].limits.max)?;
        let peer = page_share::Peer {
            pages: space.frames(),
            process: seat.process.clone(),
        };
        Some((self.members[index].id, domain.clone(), peer))
    }

    /// Takes in a guest's report. Reports of guests that are gone are dropped.
    pub fn hear(&mut self, id: GuestId, report: Report) {
        let Some(index) = self.index(id) else { return };
        let paused = report.paused;
        if self.members[index].hear(report) {
            let phase = &mut self.seats[index].phase;
            // Whoever asked it to end knows better; anybody may have paused it at its control socket.
            *phase = match (*phase, paused) {
                (Phase::Stopping, _) => Phase::Stopping,
                (_, true) => Phase::Paused,
                (_, false) => Phase::Running,
            };
        }
    }

    /// Takes in what a guest's process says about its limit. Whether it waits for memory.
    pub fn stand(&mut self, id: GuestId, standing: Standing) -> bool {
        let Some(index) = self.index(id) else { return false };
        let member = &mut self.members[index];
        let waited = member.standing.waiting > 0;
        member.stand(standing);
        standing.waiting > 0 || waited
    }

    /// One round over everybody: counts memory, plans, and remembers the orders.
    ///
    /// # Errors
    /// When the limits contradict each other, which admission and [`Roster::set`] rule out.
    pub fn round(&mut self, elapsed: Duration) -> Result<&Round, FleetError> {
        self.census.pass(elapsed);
        for (member, seat) in self.members.iter_mut().zip(&self.seats) {
            // A process that has just died keeps its last count until it is buried.
            if let Ok(counted) = self.census.of(seat.pid) {
                member.count(counted);
            }
        }
        self.old_pools = self.count_old_pools();
        let spent = self.spent();
        let round = self
            .policy
            .round(elapsed, spent, self.groups.list(), &mut self.members)?;
        for (member, seat) in self.members.iter().zip(&mut self.seats) {
            seat.orders = round.orders.get(&member.id).copied().unwrap_or_default();
        }
        Ok(self.round.insert(round))
    }

    /// Changes the settings.
    ///
    /// # Errors
    /// When the guests' minimums do not fit the new budget; nothing has changed then.
    pub fn set(&mut self, settings: Settings) -> Result<(), ChangeError> {
        let before = *self.policy.settings();
        self.policy.set(settings);
        // Minimums are promised whatever is shared at the moment, and a promise once made is only tested against less.
        let fits = if settings.budget < before.budget {
            self.promises().map_err(ChangeError::Promise)
        } else {
            Ok(())
        };
        if let Err(error) = fits.and_then(|()| Ok(self.keeps_promises()?)) {
            self.policy.set(before);
            return Err(error);
        }
        Ok(())
    }

    /// Changes a guest's limits.
    ///
    /// # Errors
    /// When they contradict themselves or the budget; nothing has changed then.
    pub fn set_limits(&mut self, id: GuestId, limits: Limits) -> Result<(), ChangeError> {
        let Some(index) = self.index(id) else {
            return Ok(());
        };
        let before = self.members[index].limits;
        if limits.min > before.min {
            let minimums = || {
                let others = self.minimums().enumerate().filter(move |(at, _)| *at != index);
                others.map(|(_, min)| min).chain([(limits.group, limits.min)])
            };
            self.groups.fit(minimums())?;
            let mut others = self.reservations();
            others.remove(index);
            others.extend(self.groups.promised(minimums()));
            self.admission()
                .check(&others, &reservation(id, limits))
                .map_err(ChangeError::Promise)?;
        }
        self.members[index].limits = limits;
        if let Err(error) = self.keeps_promises() {
            self.members[index].limits = before;
            return Err(error.into());
        }
        self.policy.replan();
        Ok(())
    }

    /// Changes a group's limits.
    ///
    /// # Errors
    /// When they contradict themselves, its members' or the budget; nothing has changed then.
    pub fn set_group(&mut self, id: GroupId, group: Group) -> Result<(), ChangeError> {
        let before = self.groups.replace(id, group)?;
        let fits = self.groups.fit(self.minimums()).map_err(ChangeError::from);
        let fits = fits.and_then(|()| match group.min > before.min {
            true => self.promises().map_err(ChangeError::Promise),
            false => Ok(()),
        });
        if let Err(error) = fits.and_then(|()| Ok(self.keeps_promises()?)) {
            self.groups.replace(id, before)?;
            return Err(error);
        }
        self.policy.replan();
        Ok(())
    }

    /// A guest's limits in the words of the link.
    pub fn limits(&self, id: GuestId) -> Option<link::Limits> {
        let limits = self.members[self.index(id)?].limits;
        Some(link::Limits {
            min: limits.min.get().saturating_mul(4096),
            shares: limits.shares.get(),
            group: limits.group.and_then(|group| self.groups.limits(group)),
        })
    }

    /// The fleet as the allocator sees it now.
    ///
    /// # Errors
    /// When the limits contradict each other, which admission and [`Roster::set`] rule out.
    pub fn fleet(&self) -> Result<Fleet, FleetError> {
        self.policy.fleet(self.spent(), self.groups.list(), &self.members)
    }

    fn keeps_promises(&self) -> Result<(), FleetError> {
        self.policy
            .keeps_promises(self.spent(), self.groups.list(), &self.members)
    }

    /// `text` with guests and groups called by their names instead of the allocator's numbers.
    pub fn named(&self, text: &str) -> String {
        // The larger number first: "guest 1" is where "guest 12" begins.
        let mut text = text.to_owned();
        for (member, seat) in self.members.iter().zip(&self.seats).rev() {
            text = text.replace(&member.id.to_string(), &seat.name);
        }
        for (place, (name, _)) in self.groups.named().enumerate().rev() {
            let number = GroupId::new(place as u32).to_string();
            text = text.replace(&number, &format!("group {name}"));
        }
        text
    }

    /// Everybody, in the order of admission.
    pub fn guests(&self) -> impl Iterator<Item = (&Member, &Seat)> {
        self.members.iter().zip(&self.seats)
    }

    /// One guest's seat.
    pub fn seat_mut(&mut self, id: GuestId) -> Option<&mut Seat> {
        let index = self.index(id)?;
        self.seats.get_mut(index)
    }

    /// The sharing domains by name.
    pub fn domains(&self) -> &BTreeMap<String, LocalManager> {
        &self.domains
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

    /// What the budget is spent on beside the guests' processes.
    pub fn spent(&self) -> Spent {
        let pools = self
            .domains
            .values()
            .filter_map(|domain| domain.with(|d| d.pool_bytes().unwrap_or(0)));
        let manager = Held::of(std::process::id()).unwrap_or_default().total();
        Spent {
            pools: whole_pages(pools.sum()) + self.old_pools(),
            manager: whole_pages(manager),
        }
    }

    /// What pools of managers that are gone occupied at the last round, each counted once.
    pub fn old_pools(&self) -> Pages {
        self.old_pools
    }

    /// What the pools occupy that guests' processes name: by the kernel's count, or where that is not shown by their word,
    /// up to their guests' sizes.
    fn count_old_pools(&self) -> Pages {
        let mut named = self.members.iter().zip(&self.seats);
        let mut pools = BTreeMap::<u64, u64>::new();
        if named.all(|(member, _)| member.report.old_pools.is_empty()) {
            return Pages::ZERO;
        }
        // The pools of now are counted as such.
        let own = census::memory_files(std::process::id()).unwrap_or_default();
        for (member, seat) in self.members.iter().zip(&self.seats) {
            let said = &member.report.old_pools;
            if said.iter().all(|pool| pools.contains_key(&pool.id)) {
                continue;
            }
            let files = census::memory_files(seat.pid);
            let mut believed = member.limits.max.get().saturating_mul(4096);
            for pool in said.iter().filter(|pool| !own.contains_key(&pool.id)) {
                let bytes = match &files {
                    Ok(files) => files.get(&pool.id).copied().unwrap_or(0),
                    Err(_) => pool.bytes.min(believed),
                };
                believed = believed.saturating_sub(bytes);
                let known = pools.entry(pool.id).or_default();
                *known = bytes.max(*known);
            }
        }
        whole_pages(pools.into_values().fold(0, u64::saturating_add))
    }

    fn index(&self, id: GuestId) -> Option<usize> {
        self.members.iter().position(|member| member.id == id)
    }

    fn admission(&self) -> Admission {
        self.policy.admission(self.spent(), &self.members, self.backing)
    }

    /// Each guest's minimum, with its group.
    fn minimums(&self) -> impl Iterator<Item = (Option<GroupId>, Pages)> {
        let limits = self.members.iter().map(|member| member.limits);
        limits.map(|limits| (limits.group, limits.min))
    }

    /// Whether all that was promised fits the budget, one guest after the other, then the groups.
    fn promises(&self) -> Result<(), AdmissionError> {
        let (admission, mut promised) = (self.admission(), self.reservations());
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

    /// Takes the guest into the domain it names, which is made for the first one.
    fn join(&mut self, sharing: &Sharing, size: Pages) -> Result<Option<String>, AdmitError> {
        let Sharing::Domain(name) = sharing else {
            return Ok(None);
        };
        let failed = |source| AdmitError::Domain {
            domain: name.clone(),
            source,
        };
        if !is_name(name) {
            return Err(AdmitError::Name(name.clone()));
        }
        frame_space(size).ok_or_else(|| failed(std::io::Error::other("guests have less than 16 TiB")))?;
        if !self.domains.contains_key(name) {
            let domain = page_share::Domain::new(POOL_LIMIT).map_err(failed)?;
            self.domains.insert(name.clone(), LocalManager::new(domain));
        }
        Ok(Some(name.clone()))
    }
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

/// The page numbers of a guest with so many pages of RAM.
fn frame_space(ram: Pages) -> Option<FrameSpace> {
    FrameSpace::of_ram(ram.get().checked_mul(PAGE_SIZE)?)
}
