//! Guests that outlived the manager that admitted them.
//!
//! The next manager takes them back before any of them has said a word, from what the one before kept and what the
//! kernel says: they hold memory, so they are counted, and what was promised to them is not promised once more. When
//! they connect they are who they were. No budget, no disk that is full and no limit of a new manager keeps one out: a
//! guest without a manager holds what it likes.

use std::io;
use std::time::Duration;

use allocator::{GuestId, Pages, Shares};
use page_share::GuestProcess;

use super::{AdmitError, ManagedProcess, Origin, Registry, is_name};
use crate::groups::whole_pages;
use crate::kept::{Kept, KeptGuest};
use crate::member::Limits;
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
}

/// Finds the process that has a number and started at a time; `None` where it is gone.
type Watch<'a> = &'a dyn Fn(u32, u64) -> io::Result<Option<GuestProcess>>;

impl Registry {
    /// Takes back all guests of `kept` whose processes live.
    pub fn take_back(&mut self, kept: &Kept) {
        self.take_back_by(kept, &GuestProcess::of_started);
    }

    pub(super) fn take_back_by(&mut self, kept: &Kept, watch: Watch<'_>) {
        let guests = kept.guests.iter();
        self.unwatched = guests.map(|guest| Unwatched::of(guest, &kept.groups)).collect();
        self.watch_by(watch);
        if self.members.is_empty() {
            return;
        }
        self.settling = SETTLING;
        log::info!(
            "{} guests of the manager before are taken back",
            self.members.len()
        );
        if let Err(error) = self.promises() {
            log::warn!(
                "what was promised to guests of the manager before does not fit the budget; they are taken back all the \
                 same and squeezed: {}",
                self.named(&error.to_string())
            );
        }
    }

    /// Looks again for guests of the manager before that could not be looked at: the system may have had no descriptor
    /// or no memory for it. Whether it is known of any now, and the processes of those that are taken back.
    pub fn watch_again(&mut self) -> (bool, Vec<(GuestId, u32)>) {
        let before = self.unwatched.len();
        if before == 0 {
            return (false, Vec::new());
        }
        let back = self.watch_by(&GuestProcess::of_started);
        (self.unwatched.len() < before, back)
    }

    fn watch_by(&mut self, watch: Watch<'_>) -> Vec<(GuestId, u32)> {
        let mut back = Vec::new();
        for mut left in std::mem::take(&mut self.unwatched) {
            let name = &left.guest.name;
            match watch(left.guest.pid, left.guest.started) {
                Ok(Some(process)) => match self.take_back_one(&left, process) {
                    Ok(id) => back.push((id, left.guest.pid)),
                    Err(reason) => {
                        log::error!("guest {name:?} of the manager before is not taken back: {reason}");
                    }
                },
                Ok(None) => log::debug!("guest {name:?} of the manager before is gone"),
                Err(error) => {
                    if !left.said {
                        log::error!(
                            "guest {name:?} of the manager before cannot be watched yet: {}",
                            crate::spare::reason(&error)
                        );
                    }
                    left.said = true;
                    self.unwatched.push(left);
                }
            }
        }
        back
    }

    /// Takes the guest called `name` back, if it could not be looked at before: it is `process`, which has come by itself.
    pub(super) fn take_back_as(&mut self, name: &str, process: &GuestProcess) -> Result<(), AdmitError> {
        let mut unwatched = self.unwatched.iter();
        let Some(place) = unwatched.position(|left| left.guest.name == name) else {
            return Ok(());
        };
        let KeptGuest { pid, started, .. } = self.unwatched[place].guest;
        let is_it = pid == process.pid() && process.started().map_err(AdmitError::Process)? == started;
        if !is_it {
            return Err(AdmitError::Taken(name.to_owned()));
        }
        let left = self.unwatched.remove(place);
        if let Err(reason) = self.take_back_one(&left, process.clone()) {
            log::error!("guest {name:?} of the manager before comes as a new one: {reason}");
        }
        Ok(())
    }

    /// Lets `elapsed` pass. Whether memory may be handed out beyond what was promised.
    pub(super) fn settle_down(&mut self, elapsed: Duration) -> bool {
        let mut processes = self.processes.values();
        let settled = self.settling.is_zero() || processes.all(|process| process.origin != Origin::Survivor);
        self.settling = self.settling.saturating_sub(elapsed);
        settled
    }

    /// Only what no manager writes is refused.
    fn take_back_one(&mut self, left: &Unwatched, process: GuestProcess) -> Result<GuestId, String> {
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
            ..ManagedProcess::new(&guest.name, process, (guest.started, guest.protocol))
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
        let bytes = |pages: Pages| pages.get().saturating_mul(4096);
        let guests = self.guests().map(|(member, process)| KeptGuest {
            name: process.name.clone(),
            pid: process.pid,
            started: process.started,
            size: bytes(member.limits.max),
            min: bytes(member.limits.min),
            shares: member.limits.shares.get(),
            group: member
                .limits
                .group
                .and_then(|id| self.groups.name(id))
                .map(str::to_owned),
            domain: process.sharing.clone(),
            fleet: process.fleet.clone(),
            control: process.control.clone(),
            protocol: process.protocol,
        });
        let unwatched = self.unwatched.iter().map(|left| left.guest.clone());
        (groups, guests.chain(unwatched).collect())
    }
}
