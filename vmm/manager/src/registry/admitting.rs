//! How a guest comes to be in the registry: as a new one that fits, or as the one that it was.

use std::io;
use std::time::Instant;

use allocator::{GuestId, Pages, Reservation, Shares};

use super::{AdmitError, ManagedProcess, ProcessId, Registry, frame_space, is_name, reservation};
use crate::groups::{GroupError, whole_pages};
use crate::member::Limits;
use crate::own_swap::OwnSwap;
use levy_protocol::link::{Hello, Sharing};

/// Bytes in the longest path that a guest names: that of the kernel.
pub(super) const LONGEST_PATH: usize = 4096;

/// A guest's process that introduces itself, with what was found out about it.
#[derive(Debug)]
pub struct Applicant {
    /// What it says of itself.
    pub hello: Hello,
    /// Which process it is, by the kernel's word.
    pub process: ProcessId,
    /// Why the sharing domain that it names could not be made, where that is so.
    pub domain: io::Result<()>,
    /// The file system that it says it swaps to, where the kernel confirms that it has a folder open there.
    pub swap_device: Option<u64>,
}

impl Registry {
    /// Admits a guest at `now`, or says why not. A guest that was cut off and comes back is who it was.
    ///
    /// # Errors
    /// See [`AdmitError`]; nothing has changed then.
    pub fn admit(&mut self, now: Instant, applicant: Applicant) -> Result<GuestId, AdmitError> {
        let Applicant {
            hello,
            process,
            domain,
            swap_device,
        } = applicant;
        let swap = hello.swap.map(|room| OwnSwap::new(room, swap_device));
        let protocol = hello.range().common()?;
        if !is_name(&hello.name) {
            return Err(AdmitError::Name(hello.name));
        }
        self.take_back_as(now, &hello.name, process)?;
        if let Some(id) = self.find(&hello.name) {
            let id = self.return_as(now, id, (&hello, protocol), process)?;
            if let Some(known) = self.processes.get_mut(&id) {
                known.swap = swap;
            }
            return Ok(id);
        }
        self.check(&hello, process)?;
        let process = ManagedProcess {
            control: hello.control.clone(),
            fleet: hello.fleet.clone(),
            swap,
            ..ManagedProcess::new(now, &hello.name, process, protocol)
        };
        let settled = self.settle(&hello, domain).and_then(|(limits, sharing)| {
            // One that another manager admitted, of which nothing is known here, has swapped before.
            let swapped = hello.pages.map_or(0, |pages| pages.swapped);
            let asked = (limits, Pages::new(swapped));
            self.swap_suffices(GuestId::new(self.next), &process, asked)?;
            Ok((limits, sharing))
        });
        if settled.is_err() {
            self.groups.prune(&mut self.members);
        }
        let (limits, sharing) = settled?;
        Ok(self.enter(limits, ManagedProcess { sharing, ..process }))
    }

    /// The same process, after its connection or its manager went: it never ceased to be here, with the limits that it
    /// had.
    fn return_as(
        &mut self,
        now: Instant,
        id: GuestId,
        (hello, protocol): (&Hello, u32),
        process: ProcessId,
    ) -> Result<GuestId, AdmitError> {
        let taken = || AdmitError::Taken(hello.name.clone());
        let member = self.members.iter().find(|member| member.id == id);
        let known = self.processes.get_mut(&id).ok_or_else(taken)?;
        let is_same = known.id == process;
        if let Some(seconds) = known.penalty.barred(now).filter(|_| is_same) {
            return Err(AdmitError::Barred { seconds });
        }
        if known.connected || !is_same {
            return Err(taken());
        }
        known.protocol = protocol;
        if let (Some(member), Some(pages)) = (member, &hello.pages) {
            known.brought(member.limits, pages);
        }
        Ok(id)
    }

    /// Whether a new guest may be called what it says and run where it does.
    fn check(&self, hello: &Hello, process: ProcessId) -> Result<(), AdmitError> {
        if hello.shares == 0 {
            return Err(AdmitError::Shares);
        }
        for (what, text) in [("control", &hello.control), ("fleet", &hello.fleet)] {
            if text.as_ref().is_some_and(|text| text.len() > LONGEST_PATH) {
                return Err(AdmitError::Path(what));
            }
        }
        let mut processes = self.processes.values();
        match processes.find(|known| !self.several_in_one && known.id == process) {
            Some(known) => Err(AdmitError::Second(known.name.clone())),
            None => Ok(()),
        }
    }

    /// The limits of a guest that fits, and its sharing domain, which could be made or not.
    fn settle(
        &mut self,
        hello: &Hello,
        domain: io::Result<()>,
    ) -> Result<(Limits, Option<String>), AdmitError> {
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
        self.has_room(limits, self.groups.promised(minimums()))?;
        let sharing = match &hello.sharing {
            Sharing::Off => None,
            Sharing::Domain(name) if !is_name(name) => return Err(AdmitError::DomainName(name.clone())),
            Sharing::Domain(name) => {
                let too_large = || io::Error::other("guests have less than 16 TiB");
                let fits = frame_space(limits.max).ok_or_else(too_large);
                fits.and(domain)
                    .map_err(|source| AdmitError::domain(name, source))?;
                Some(name.clone())
            }
        };
        Ok((limits, sharing))
    }

    /// Whether the next guest fits with `limits` beside all others, where `groups` is what groups are promised beyond their
    /// members' minimums.
    fn has_room(&self, limits: Limits, mut groups: Vec<Reservation>) -> Result<(), AdmitError> {
        let asked = reservation(GuestId::new(self.next), limits);
        let check = |groups: &[Reservation]| {
            let all = [self.reservations(), groups.to_vec()].concat();
            self.admission().check(&all, &asked)
        };
        let Err(error) = check(&groups) else {
            return Ok(());
        };
        // Where it would fit without what its group is promised, that is what does not.
        if let Some(id) = limits.group
            && let (Some(group), Some(promised)) = (self.groups.limits(id), groups.get_mut(id.get() as usize))
        {
            let beyond = std::mem::replace(&mut promised.min, Pages::ZERO);
            promised.max = Pages::ZERO;
            if let Ok(room) = check(&groups) {
                return Err(AdmitError::from(GroupError::Unfit {
                    name: group.name,
                    min: whole_pages(group.min),
                    missing: beyond.less(room.memory),
                }));
            }
        }
        Err(error.into())
    }
}
