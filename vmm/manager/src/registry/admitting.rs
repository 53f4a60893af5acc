//! How a guest comes to be in the registry: as a new one that fits, or as the one that it was.

use allocator::{GuestId, Shares};
use page_share::GuestProcess;

use super::{AdmitError, ManagedProcess, Registry, is_name, reservation};
use crate::groups::whole_pages;
use crate::member::Limits;
use levy_protocol::link::{Hello, Sharing};

/// Bytes in the longest path that a guest names: that of the kernel.
pub(super) const LONGEST_PATH: usize = 4096;

impl Registry {
    /// Admits a guest, or says why not. A guest that was cut off and comes back is who it was.
    ///
    /// # Errors
    /// See [`AdmitError`]; nothing has changed then.
    pub fn admit(&mut self, hello: &Hello, handle: GuestProcess) -> Result<GuestId, AdmitError> {
        let protocol = hello.range().common()?;
        if !is_name(&hello.name) {
            return Err(AdmitError::Name(hello.name.clone()));
        }
        self.take_back_as(&hello.name, &handle)?;
        if let Some(id) = self.find(&hello.name) {
            return self.return_as(id, hello, &handle, protocol);
        }
        self.check(hello, &handle)?;
        let started = handle.started().map_err(AdmitError::Process)?;
        let settled = self.settle(hello);
        if settled.is_err() {
            self.groups.prune(&mut self.members);
        }
        let (limits, sharing) = settled?;
        let process = ManagedProcess {
            sharing,
            control: hello.control.clone(),
            fleet: hello.fleet.clone(),
            ..ManagedProcess::new(&hello.name, handle, (started, protocol))
        };
        Ok(self.enter(limits, process))
    }

    /// The same process, after its connection or its manager went: it never ceased to be here, with the limits that it
    /// had.
    fn return_as(
        &mut self,
        id: GuestId,
        hello: &Hello,
        handle: &GuestProcess,
        protocol: u32,
    ) -> Result<GuestId, AdmitError> {
        let taken = || AdmitError::Taken(hello.name.clone());
        let member = self.members.iter().find(|member| member.id == id);
        let process = self.processes.get_mut(&id).ok_or_else(taken)?;
        let is_same = handle.is_still(&process.handle);
        if let Some(seconds) = process.penalty.barred().filter(|_| is_same) {
            return Err(AdmitError::Barred { seconds });
        }
        if process.connected || !is_same {
            return Err(taken());
        }
        process.protocol = protocol;
        if let (Some(member), Some(pages)) = (member, &hello.pages) {
            process.brought(member.limits, pages);
        }
        Ok(id)
    }

    /// Whether a new guest may be called what it says and run where it does.
    fn check(&self, hello: &Hello, handle: &GuestProcess) -> Result<(), AdmitError> {
        if hello.shares == 0 {
            return Err(AdmitError::Shares);
        }
        for (what, text) in [("control", &hello.control), ("fleet", &hello.fleet)] {
            if text.as_ref().is_some_and(|text| text.len() > LONGEST_PATH) {
                return Err(AdmitError::Path(what));
            }
        }
        let mut processes = self.processes.values();
        match processes.find(|process| !self.several_in_one && handle.is_still(&process.handle)) {
            Some(process) => Err(AdmitError::Second(process.name.clone())),
            None => Ok(()),
        }
    }

    /// The limits of a guest that fits, and its sharing domain.
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
        let sharing = match &hello.sharing {
            Sharing::Off => None,
            Sharing::Domain(name) => Some(self.join(name, limits.max)?),
        };
        Ok((limits, sharing))
    }
}
