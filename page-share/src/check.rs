//! What is always true of a domain, tested in full.

use std::collections::BTreeMap;
use std::io;

use crate::domain::Domain;
use crate::index::Holder;
use crate::page::{GuestId, Slot};

impl Domain {
    /// References to `slot` that `guest` holds, those of offers included that wait for it; 0 for a guest that is not here.
    pub fn references_of(&self, guest: GuestId, slot: Slot) -> u32 {
        let state = self.guests.get(&guest);
        state.map_or(0, |state| state.held().get(slot))
    }

    /// Hashes pages of the pool again, from slot `from` on and `slots` slots far, and returns those whose bytes are
    /// not what was published: a process wrote to the pool, or memory failed.
    ///
    /// # Errors
    /// When the pool cannot be read.
    pub fn audit(&self, from: Slot, slots: u32) -> io::Result<Vec<Slot>> {
        let range = from.get()..from.get().saturating_add(slots).min(self.pool.slots());
        let mut damaged = Vec::new();
        for slot in range.map(Slot::new) {
            let Some(content) = self.pool.content(slot) else {
                continue;
            };
            let page = self.pool.read(slot)?;
            if !content.matches(&self.hasher, &page) {
                damaged.push(slot);
            }
        }
        Ok(damaged)
    }

    /// Tests the invariants above in full. Slow.
    ///
    /// # Errors
    /// Names the first thing found wrong.
    pub fn check(&self) -> Result<(), String> {
        let mut sum: BTreeMap<Slot, u32> = BTreeMap::new();
        for (guest, state) in &self.guests {
            for (slot, count) in state.held().iter() {
                *sum.entry(slot).or_default() += count;
            }
            for (gfn, trace) in state.hints() {
                if !self.index.has_traced(trace, Holder::Hint(*guest, gfn)) {
                    return Err(format!(
                        "{guest:?} {gfn:?} is remembered as a hint, but not in the index"
                    ));
                }
            }
        }
        let references: BTreeMap<Slot, u32> = self.references.iter().collect();
        if references != sum {
            return Err(format!("guests hold {sum:?}, counted are {references:?}"));
        }
        for &slot in references.keys() {
            let content = self.pool.content(slot);
            let holder = content.and_then(|content| self.index.find(content.sketch));
            let named = match holder {
                Some(Holder::Shared(named)) => named == slot || self.pool.content(named) == content,
                _ => false,
            };
            if !named {
                return Err(format!("{slot:?} has references, but the index has {holder:?}"));
            }
        }
        let hints: usize = self.guests.values().map(|state| state.hints().count()).sum();
        let (entries, used) = (self.index.entries(), self.pool.used() as usize);
        let copies = self.replicas.copies() as usize;
        if entries != hints + used - copies || used != references.len() {
            return Err(format!(
                "{entries} entries, {hints} hints, {used} slots in use, {copies} of them copies, {} referred to",
                references.len()
            ));
        }
        Ok(())
    }
}
