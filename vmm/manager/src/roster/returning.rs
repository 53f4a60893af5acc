//! Guests that outlived the manager that admitted them.
//!
//! The next manager takes them back before any of them has said a word, from what the one before kept and what the
//! kernel says: they hold memory, so they are counted, and what was promised to them is not promised once more. When
//! they connect they are who they were. No budget, no disk that is full and no limit of a new manager keeps one out: a
//! guest without a manager holds what it likes.

use allocator::{Pages, Shares};
use page_share::GuestProcess;

use super::{Origin, Roster, Seat, is_name};
use crate::groups::whole_pages;
use crate::kept::{Kept, KeptGuest};
use crate::member::Limits;
use levy_protocol::link::GroupLimits;

impl Roster {
    /// Takes back all guests of `kept` whose processes live.
    pub fn take_back(&mut self, kept: &Kept) {
        for guest in &kept.guests {
            match GuestProcess::of_started(guest.pid, guest.started) {
                Ok(Some(process)) => {
                    if let Err(reason) = self.take_back_one(guest, process, &kept.groups) {
                        log::error!(
                            "guest {:?} of the manager before is not taken back: {reason}",
                            guest.name
                        );
                    }
                }
                Ok(None) => log::debug!("guest {:?} of the manager before is gone", guest.name),
                Err(error) => {
                    log::error!(
                        "guest {:?} of the manager before cannot be watched: {error}",
                        guest.name
                    );
                }
            }
        }
        if self.members.is_empty() {
            return;
        }
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

    /// Only what no manager writes is refused.
    fn take_back_one(
        &mut self,
        guest: &KeptGuest,
        process: GuestProcess,
        groups: &[GroupLimits],
    ) -> Result<(), String> {
        if !is_name(&guest.name) || guest.shares == 0 || guest.min > guest.size {
            return Err("its name or its limits are impossible".to_owned());
        }
        if self.find(&guest.name).is_some() {
            return Err("its name is there twice".to_owned());
        }
        let group = match &guest.group {
            None => None,
            Some(name) => {
                let group = groups.iter().find(|group| group.name == *name);
                let group = group.ok_or_else(|| format!("its group {name:?} is not there"))?;
                Some(self.groups.enter(group).map_err(|error| error.to_string())?)
            }
        };
        let limits = Limits {
            min: whole_pages(guest.min),
            max: whole_pages(guest.size),
            shares: Shares::new(guest.shares),
            group,
        };
        let seat = Seat {
            fleet: guest.fleet.clone(),
            control: guest.control.clone(),
            sharing: guest.domain.clone().filter(|name| is_name(name)),
            origin: Origin::Survivor,
            ..Seat::new(&guest.name, process, (guest.started, guest.protocol))
        };
        self.seat(limits, seat);
        Ok(())
    }

    /// Groups and guests, for the next manager.
    pub fn kept(&self) -> (Vec<GroupLimits>, Vec<KeptGuest>) {
        let groups = self
            .names()
            .groups
            .into_keys()
            .filter_map(|id| self.groups.limits(id));
        let bytes = |pages: Pages| pages.get().saturating_mul(4096);
        let guests = self.guests().map(|(member, seat)| KeptGuest {
            name: seat.name.clone(),
            pid: seat.pid,
            started: seat.started,
            size: bytes(member.limits.max),
            min: bytes(member.limits.min),
            shares: member.limits.shares.get(),
            group: member
                .limits
                .group
                .and_then(|id| self.groups.name(id))
                .map(str::to_owned),
            domain: seat.sharing.clone(),
            fleet: seat.fleet.clone(),
            control: seat.control.clone(),
            protocol: seat.protocol,
        });
        (groups.collect(), guests.collect())
    }
}
