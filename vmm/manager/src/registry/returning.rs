//! Guests that outlived the manager that admitted them.
//!
//! The next manager takes them back before any of them has said a word, from what the one before kept and what the
//! kernel says: they hold memory, so they are counted, and what was promised to them is not promised once more. When
//! they connect they are who they were. No budget, no disk that is full and no limit of a new manager keeps one out: a
//! guest without a manager holds what it likes.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use allocator::{GuestId, Pages, Shares};
use log::Level;

use super::{AdmitError, ManagedProcess, Origin, ProcessId, Registry, is_name};
use crate::groups::whole_pages;
use crate::kept::{Kept, KeptGuest};
use crate::member::{Limits, Member};
use levy_protocol::link::GroupLimits;

/// A guest's process looks for a manager so often that it has found one by then. Until it is heard, it may hold what
/// the manager before allowed.
const SETTLING: Duration = Duration::from_secs(2);

/// A guest of the manager before that is not taken back yet: whether its process lives could not be found out.
#[derive(Debug, Clone)]
pub(super) struct Unwatched {
    guest: KeptGuest,
    /// Its group, where that was kept.
    group: Option<GroupLimits>,
    /// The log says so.
    said: bool,
}

impl Unwatched {
    fn of(guest: &KeptGuest, groups: &[GroupLimits]) -> Self {
        let named = |group: &&GroupLimits| guest.group.as_ref() == Some(&group.name);
        Self {
            guest: guest.clone(),
            group: groups.iter().find(named).cloned(),
            said: false,
        }
    }

    fn process(&self) -> ProcessId {
        self.guest.process()
    }
}

/// What is known of a process that ran a guest of the manager before.
#[derive(Debug)]
pub enum Fate {
    /// It lives.
    Lives,
    /// It is gone.
    Gone,
    /// The system does not say: it may have no descriptor or no memory for it.
    Unknown(io::Error),
}

impl Registry {
    /// Takes in what the manager before `kept` of its guests. None of them is here before it is known whether its process
    /// lives.
    pub fn take_over(&mut self, kept: &Kept) {
        let guests = kept.guests.iter();
        self.unwatched = guests.map(|guest| Unwatched::of(guest, &kept.groups)).collect();
    }

    /// The processes of guests of the manager before of which it is not known whether they live.
    pub fn unwatched(&self) -> Vec<ProcessId> {
        self.unwatched.iter().map(Unwatched::process).collect()
    }

    /// Takes back the guests of the manager before whose processes live, by their `fates`. Returns whether more is known
    /// of any now, and those that are taken back.
    pub fn take_back(
        &mut self,
        now: Instant,
        mut fates: BTreeMap<ProcessId, Fate>,
    ) -> (bool, Vec<(GuestId, ProcessId)>) {
        let (before, mut back) = (self.unwatched.len(), Vec::new());
        for mut left in std::mem::take(&mut self.unwatched) {
            let (name, process) = (left.guest.name.clone(), left.process());
            match fates.remove(&process) {
                Some(Fate::Lives) => match self.take_back_one(now, &left) {
                    Ok(id) => back.push((id, process)),
                    Err(reason) => self.remark(
                        Level::Error,
                        format!("guest {name:?} of the manager before is not taken back: {reason}"),
                    ),
                },
                Some(Fate::Gone) => self.remark(
                    Level::Debug,
                    format!("guest {name:?} of the manager before is gone"),
                ),
                Some(Fate::Unknown(error)) => {
                    if !left.said {
                        let reason = crate::spare::reason(&error);
                        let line =
                            format!("guest {name:?} of the manager before cannot be watched yet: {reason}");
                        self.remark(Level::Error, line);
                    }
                    left.said = true;
                    self.unwatched.push(left);
                }
                None => self.unwatched.push(left),
            }
        }
        (self.unwatched.len() < before, back)
    }

    /// Gives the guests that were taken back time to be heard, and says where what was promised to them does not fit.
    pub fn welcome_back(&mut self) {
        if self.members.is_empty() {
            return;
        }
        self.settling = SETTLING;
        let line = format!(
            "{} guests of the manager before are taken back",
            self.members.len()
        );
        self.remark(Level::Info, line);
        if let Err(error) = self.promises() {
            let line = format!(
                "what was promised to guests of the manager before does not fit the budget; they are taken back all the \
                 same and squeezed: {}",
                self.named(&error.to_string())
            );
            self.remark(Level::Warn, line);
        }
    }

    fn remark(&mut self, level: Level, line: String) {
        self.remarks.push((level, line));
    }

    /// Takes the guest called `name` back, if it could not be looked at before: it is `process`, which has come by itself.
    pub(super) fn take_back_as(
        &mut self,
        now: Instant,
        name: &str,
        process: ProcessId,
    ) -> Result<(), AdmitError> {
        let mut unwatched = self.unwatched.iter();
        let Some(place) = unwatched.position(|left| left.guest.name == name) else {
            return Ok(());
        };
        if self.unwatched[place].process() != process {
            return Err(AdmitError::Taken(name.to_owned()));
        }
        let left = self.unwatched.remove(place);
        if let Err(reason) = self.take_back_one(now, &left) {
            let line = format!("guest {name:?} of the manager before comes as a new one: {reason}");
            self.remark(Level::Error, line);
        }
        Ok(())
    }

    /// Lets `elapsed` pass. Whether memory may be handed out beyond what was promised.
    pub(super) fn settle_down(&mut self, elapsed: Duration) -> bool {
        // What one has said since the kernel was asked counts in the next round: it may have named a pool.
        let misses_pools = self.misses_pools && !self.settling.is_zero();
        let settled = !misses_pools && self.still_to_return().next().is_none();
        self.settling = self.settling.saturating_sub(elapsed);
        settled
    }

    /// Only what no manager writes is refused.
    fn take_back_one(&mut self, now: Instant, left: &Unwatched) -> Result<GuestId, String> {
        let guest = &left.guest;
        if !is_name(&guest.name) || guest.shares == 0 || guest.min > guest.size {
            return Err("its name or its limits are impossible".to_owned());
        }
        if self.find(&guest.name).is_some() {
            return Err("its name is there twice".to_owned());
        }
        let group = match (&guest.group, &left.group) {
            (None, _) => None,
            (Some(name), None) => return Err(format!("its group {name:?} is not there")),
            (Some(_), Some(group)) => Some(self.groups.enter(group).map_err(|error| error.to_string())?),
        };
        let limits = Limits {
            min: whole_pages(guest.min),
            max: whole_pages(guest.size),
            shares: Shares::new(guest.shares),
            group,
        };
        let process = ManagedProcess {
            fleet: guest.fleet.clone(),
            control: guest.control.clone(),
            sharing: guest.domain.clone().filter(|name| is_name(name)),
            origin: Origin::Survivor,
            ..ManagedProcess::new(now, &guest.name, left.process(), guest.protocol)
        };
        Ok(self.enter(limits, process))
    }

    /// Groups and guests, for the next manager; those included that could not be looked at yet.
    pub fn kept(&self) -> (Vec<GroupLimits>, Vec<KeptGuest>) {
        let ids = self.names().groups.into_keys();
        let mut groups: Vec<GroupLimits> = ids.filter_map(|id| self.groups.limits(id)).collect();
        for group in self.unwatched.iter().filter_map(|left| left.group.as_ref()) {
            if groups.iter().all(|known| known.name != group.name) {
                groups.push(group.clone());
            }
        }
        let guests = self.guests().map(|(member, process)| self.keep(member, process));
        let unwatched = self.unwatched.iter().map(|left| left.guest.clone());
        (groups, guests.chain(unwatched).collect())
    }

    /// The same of one guest.
    pub fn kept_guest(&self, id: GuestId) -> Option<KeptGuest> {
        Some(self.keep(self.member(id)?, self.processes.get(&id)?))
    }

    fn keep(&self, member: &Member, process: &ManagedProcess) -> KeptGuest {
        let bytes = |pages: Pages| pages.get().saturating_mul(4096);
        let group = member.limits.group.and_then(|id| self.groups.name(id));
        KeptGuest {
            name: process.name.clone(),
            pid: process.id.pid,
            started: process.id.started,
            size: bytes(member.limits.max),
            min: bytes(member.limits.min),
            shares: member.limits.shares.get(),
            group: group.map(str::to_owned),
            domain: process.sharing.clone(),
            fleet: process.fleet.clone(),
            control: process.control.clone(),
            protocol: process.protocol,
        }
    }
}
