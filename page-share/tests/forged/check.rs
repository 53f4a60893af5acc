//! What is true after every step.

use super::contents;
use super::guest::{Guest, PAGES};
use super::world::World;

impl World {
    /// What must be true now. The bytes of some pages at each step, of all of them now and then.
    pub(crate) fn check(&self, number: usize) -> Result<(), String> {
        self.domain.check()?;
        for guest in self.guests.iter().filter(|guest| !guest.hostile) {
            let held = guest.held(self.generation);
            if held.is_empty() {
                continue;
            }
            let Some((attachment, _)) = self.current.get(&guest.life) else {
                return Err(format!(
                    "{:?} lives and holds {held:?}, the domain does not know it",
                    guest.life
                ));
            };
            for (slot, count) in held {
                let referred = self.domain.references_of(attachment.guest(), slot);
                if referred < count {
                    return Err(format!(
                        "{:?} holds {slot:?} {count} times, counted are {referred}",
                        guest.life
                    ));
                }
            }
            self.check_bytes(guest, number)?;
        }
        Ok(())
    }

    fn check_bytes(&self, guest: &Guest, number: usize) -> Result<(), String> {
        for (&gfn, &(generation, slot)) in &guest.mapped {
            let turn = number.is_multiple_of(64) || number as u32 % PAGES == gfn;
            if !turn || generation != self.generation {
                continue;
            }
            let (found, written) = (contents::read(&self.pool, slot), guest.memory[gfn as usize]);
            if found != Some(written) {
                return Err(format!(
                    "{:?}: page {gfn} should hold {written}, there is {found:?}",
                    guest.life
                ));
            }
        }
        Ok(())
    }
}
