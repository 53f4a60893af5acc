//! What a bench changes at its manager while guests run.

use allocator::{GuestId, Pages, Shares};

use super::{Guest, Testbed, TestbedError};
use levy_manager::manager::Change;
use levy_manager::policy::Settings;

impl Testbed {
    /// Changes the manager's settings.
    ///
    /// # Errors
    /// When the guests' minimums do not fit them.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) -> Result<(), TestbedError> {
        let mut settings = *self.host.registry().policy().settings();
        change(&mut settings);
        Ok(self.host.change(Change::Settings(settings))?)
    }

    /// Changes a guest's minimum, in bytes, and shares.
    ///
    /// # Errors
    /// When it is not admitted yet, or its limits do not fit.
    pub fn set_limits(&self, guest: Guest, min_bytes: u64, shares: u32) -> Result<(), TestbedError> {
        let name = self.name(guest);
        let known: Option<(GuestId, _)> = self
            .host
            .registry()
            .guests()
            .find(|(_, process)| process.name == name)
            .map(|(member, _)| (member.id, member.limits));
        let Some((id, mut limits)) = known else {
            return Err(TestbedError::Impossible(format!(
                "guest {name} is not admitted yet"
            )));
        };
        limits.min = Pages::new(min_bytes / 4096);
        limits.shares = Shares::new(shares);
        Ok(self.host.change(Change::Limits(id, limits))?)
    }

    /// Sets the budget at which the plan hands out `wanted` private memory: what processes and reserves need besides it
    /// changes a little all the time, so call it again now and then.
    ///
    /// # Errors
    /// As [`Testbed::set`].
    pub fn hand_out(&self, wanted: Pages) -> Result<(), TestbedError> {
        let (given, budget) = {
            let registry = self.host.registry();
            let fleet = registry
                .fleet()
                .map_err(|error| TestbedError::Impossible(error.to_string()))?;
            (fleet.supply().memory, registry.policy().settings().budget)
        };
        // Within one in a hundred it is not worth a new plan.
        if given.get().abs_diff(wanted.get()) <= wanted.get() / 100 {
            return Ok(());
        }
        let budget = Pages::new((budget + wanted).get().saturating_sub(given.get()));
        self.set(|settings| settings.budget = budget)
    }
}
