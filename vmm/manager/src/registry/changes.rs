//! Limits and settings that are changed while guests run.

use allocator::{FleetError, Group, GroupId, GuestId};

use super::{ChangeError, Registry, find_mut, reservation};
use crate::member::Limits;
use crate::policy::Settings;

impl Registry {
    /// Changes the settings. Where the budget does not keep what was promised already, because it was made smaller while
    /// no manager ran, every change that does not make it smaller still is taken.
    ///
    /// # Errors
    /// When the guests' minimums do not fit the new budget; nothing has changed then.
    pub fn set(&mut self, settings: Settings) -> Result<(), ChangeError> {
        let (before, was_broken) = (*self.policy.settings(), self.keeps_promises().is_err());
        self.policy.set(settings);
        let smaller = settings.budget < before.budget;
        // Minimums are promised whatever is shared at the moment, and a promise once made is only tested against less.
        let fits = match smaller {
            true => self
                .promises()
                .map_err(ChangeError::Promise)
                .and_then(|()| self.all_swap_suffices()),
            false => Ok(()),
        };
        if let Err(error) = fits.and_then(|()| self.still_fits(was_broken && !smaller)) {
            self.policy.set(before);
            return Err(error);
        }
        // A client that changed it is told at once what the next round will find.
        let spent = self.spent();
        if let Some(round) = &mut self.round {
            (round.free, round.state) = self.policy.observe(spent, &self.members);
        }
        Ok(())
    }

    /// Changes a guest's limits.
    ///
    /// # Errors
    /// When they contradict themselves or the budget; nothing has changed then.
    pub fn set_limits(&mut self, id: GuestId, limits: Limits) -> Result<(), ChangeError> {
        let Some(before) = self.member(id).map(|member| member.limits) else {
            return Ok(());
        };
        let was_broken = self.keeps_promises().is_err();
        if limits.min > before.min {
            let minimums = || self.minimums_with(Some((id, limits)));
            self.groups.fit(minimums())?;
            let mut others = self.reservations();
            others.retain(|reservation| reservation.guest != id);
            others.extend(self.groups.promised(minimums()));
            self.admission()
                .check(&others, &reservation(id, limits))
                .map_err(ChangeError::Promise)?;
        }
        if limits.min < before.min {
            self.own_swap_suffices(id, limits)?;
        }
        self.put_limits(id, limits);
        if let Err(error) = self.still_fits(was_broken && limits.min <= before.min) {
            self.put_limits(id, before);
            return Err(error);
        }
        self.policy.replan();
        Ok(())
    }

    /// Changes a group's limits.
    ///
    /// # Errors
    /// When they contradict themselves, its members' or the budget; nothing has changed then.
    pub fn set_group(&mut self, id: GroupId, group: Group) -> Result<(), ChangeError> {
        let was_broken = self.keeps_promises().is_err();
        let before = self.groups.replace(id, group)?;
        let fits = self.groups.fit(self.minimums()).map_err(ChangeError::from);
        let fits = fits.and_then(|()| match group.min > before.min {
            true => self.promises().map_err(ChangeError::Promise),
            false => Ok(()),
        });
        if let Err(error) = fits.and_then(|()| self.still_fits(was_broken && group.min <= before.min)) {
            self.groups.replace(id, before)?;
            return Err(error);
        }
        self.policy.replan();
        Ok(())
    }

    fn put_limits(&mut self, id: GuestId, limits: Limits) {
        if let Some(member) = find_mut(&mut self.members, id) {
            member.limits = limits;
        }
    }

    /// Whether a plan can be made that keeps what was promised; or, where that was so before, `was_broken`, at least one.
    fn still_fits(&self, was_broken: bool) -> Result<(), ChangeError> {
        match self.keeps_promises() {
            Err(FleetError::MinimumsExceedMemory { .. }) if was_broken => Ok(()),
            other => Ok(other?),
        }
    }
}
