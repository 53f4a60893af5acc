//! Whether guests' own swap backs what may have to go there.

use allocator::{GuestId, Pages};

use super::{ManagedProcess, Registry};
use crate::member::{Limits, Member};
use crate::own_swap::{OwnSwap, SwapShortage};

impl Registry {
    /// Whether the swap of each guest backs its max - min.
    pub(super) fn all_swap_suffices(&self) -> Result<(), SwapShortage> {
        let mut guests = self.guests();
        guests.try_for_each(|(member, _)| self.own_swap_suffices(member.id, member.limits))
    }

    /// The same for one guest, with `limits`.
    pub(super) fn own_swap_suffices(&self, id: GuestId, limits: Limits) -> Result<(), SwapShortage> {
        match (self.member(id), self.processes.get(&id)) {
            (Some(member), Some(process)) => {
                let swapped = Pages::new(member.report.pages.swapped);
                self.swap_suffices(id, process, (limits, swapped))
            }
            _ => Ok(()),
        }
    }

    /// The same for guest `id`, which may not be here yet and has `swapped` so much.
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
