//! Whether guests' own swap backs what may have to go there.

use allocator::{GuestId, Pages};

use super::{ChangeError, ManagedProcess, Origin, Registry};
use crate::member::{Limits, Member};
use crate::own_swap::{OwnSwap, SwapShortage};

impl Registry {
    /// Whether the budget can be kept though the swap of some guests does not back their max - min: they may keep what
    /// their processes hold, by the kernel's count, less what still fits into their swap.
    pub(super) fn all_swap_suffices(&self) -> Result<(), ChangeError> {
        let (mut promised, mut shortage) = (self.reservations(), None);
        for (reservation, member) in promised.iter_mut().zip(&self.members) {
            let Err(short) = self.own_swap_suffices(member.id, member.limits) else {
                continue;
            };
            let fits = self.processes.get(&member.id).and_then(|process| process.swap);
            let fits = fits.map_or(Pages::ZERO, |swap| swap.free + swap.spare);
            let kept = member.memory().less(fits).min(reservation.max);
            reservation.min = reservation.min.max(kept);
            shortage.get_or_insert(short);
        }
        match (shortage, self.all_fit(promised)) {
            (Some(shortage), Err(_)) => Err(shortage),
            _ => Ok(()),
        }
    }

    /// The same for one guest, with `limits`. What guests that are still to return can swap is not known.
    pub(super) fn own_swap_suffices(&self, id: GuestId, limits: Limits) -> Result<(), ChangeError> {
        let (Some(member), Some(process)) = (self.member(id), self.processes.get(&id)) else {
            return Ok(());
        };
        let concerns = |other: &&ManagedProcess| other.id == process.id || process.swap.is_some();
        if let Some(awaited) = self.still_to_return().find(concerns) {
            return Err(ChangeError::Awaited(awaited.name.clone()));
        }
        let swapped = Pages::new(member.report.pages.swapped);
        Ok(self.swap_suffices(id, process, (limits, swapped))?)
    }

    /// Guests of the manager before that were not heard yet, as long as they are given time for that.
    pub(super) fn still_to_return(&self) -> impl Iterator<Item = &ManagedProcess> {
        let is_awaited = |process: &&ManagedProcess| process.origin == Origin::Survivor;
        let processes = self.processes.values().filter(is_awaited);
        processes.filter(|_| !self.settling.is_zero())
    }

    /// Whether the own swap of guest `id` suffices, which may not be here yet and has `swapped` so much.
    pub(super) fn swap_suffices(
        &self,
        id: GuestId,
        process: &ManagedProcess,
        (limits, swapped): (Limits, Pages),
    ) -> Result<(), SwapShortage> {
        let Some(swap) = process.swap else { return Ok(()) };
        let there = |(member, other): (&Member, &ManagedProcess)| {
            let is_there = member.id != id && other.swap?.device == swap.device;
            let swapped = Pages::new(member.report.pages.swapped);
            is_there.then_some(demand(other.swap?, (member.limits, swapped)))
        };
        let others = match swap.device {
            Some(_) => self.guests().filter_map(there).sum(),
            None => Pages::ZERO,
        };
        let needed = demand(swap, (limits, swapped));
        SwapShortage::test(&process.name, swap, needed, others)
    }
}

/// What such a guest may still take on its file system: what it may have to swap, less what it has and has room for.
fn demand(swap: OwnSwap, (limits, swapped): (Limits, Pages)) -> Pages {
    limits.max.less(limits.min).less(swapped).less(swap.spare)
}
