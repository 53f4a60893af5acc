//! Replicas: copies of one content in consecutive slots, for contents that fill page after page of a guest.
//!
//! Neighbours that are mapped from the same slot cost a mapping each; mapped from consecutive slots they cost one
//! together. A content that many neighbouring pages have (poisoned or preset memory mostly), therefore gets
//! up to 64 slots, an aligned group: page `gfn` is granted the slot at `gfn % 64`. Copies are made one by one, when a page
//! that follows an equal page needs one, so the pages that they cost are few compared with those that they serve.

use std::collections::HashMap;

use crate::domain::Domain;
use crate::hash::Sketch;
use crate::index::Holder;
use crate::page::{Gfn, GuestId, Slot};
use crate::pool::Content;

/// Slots in a group of replicas.
const GROUP: u32 = 64;

/// References to a content's only slot from which on it is worth replicas: copies cost at most a fifth of what is won.
const POPULAR: u32 = 256;

/// All replicas of a domain.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    /// By first slot: the content, and the slot that it had before.
    origins: HashMap<u32, (Content, Slot)>,
    /// The page granted last, with its content.
    last: Option<(GuestId, Gfn, Sketch)>,
    /// Slots in use that the index does not name: copies.
    copies: u32,
}

impl Replicas {
    /// Slots in use that the index does not name.
    pub(crate) fn copies(&self) -> u32 {
        self.copies
    }

    /// Bytes of memory in use.
    pub(crate) fn bytes(&self) -> usize {
        self.origins.capacity() * size_of::<(u32, (Content, Slot))>()
    }

    /// The slot that `content` had before the group with `slot` began.
    fn origin(&self, slot: Slot, content: Content) -> Option<Slot> {
        let (whose, origin) = self.origins.get(&first_of(slot))?;
        (*whose == content).then_some(*origin)
    }

    /// Whether the page before `gfn` was the last one granted, and had the same content.
    fn follows(&mut self, guest: GuestId, gfn: Gfn, sketch: Sketch) -> bool {
        let last = self.last.replace((guest, gfn, sketch));
        last.is_some_and(|(last_guest, last, content)| {
            (last_guest, last.next(), content) == (guest, Some(gfn), sketch)
        })
    }
}

impl Domain {
    /// The slot to grant to `gfn`, which has the content that the index finds in `slot`: the same one, or a copy.
    pub(crate) fn pick(&mut self, guest: GuestId, gfn: Gfn, slot: Slot) -> Slot {
        let Some(content) = self.pool.content(slot) else {
            return slot;
        };
        let follows = self.replicas.follows(guest, gfn, content.sketch);
        let first = first_of(slot);
        if self.replicas.origin(slot, content).is_some() {
            let copy = Slot::new(first + gfn.get() % GROUP);
            let there = self.pool.content(copy) == Some(content);
            if there || (follows && self.may_hold_more(guest) && self.make_copy(slot, copy, content)) {
                return copy;
            }
        } else if follows && self.references.get(slot) >= POPULAR && self.may_hold_more(guest) {
            return self.begin_group(gfn, slot, content).unwrap_or(slot);
        }
        slot
    }

    fn begin_group(&mut self, gfn: Gfn, slot: Slot, content: Content) -> Option<Slot> {
        let first = self.pool.free_group()?;
        let copy = Slot::new(first + gfn.get() % GROUP);
        self.make_copy(slot, copy, content).then(|| {
            self.replicas.origins.insert(first, (content, slot));
            self.index.set(content.sketch, Holder::Shared(copy));
            copy
        })
    }

    /// Copies `slot` to `copy`, which is to be granted at once.
    fn make_copy(&mut self, slot: Slot, copy: Slot, content: Content) -> bool {
        if !self.pool.place_at(copy, content) {
            return false;
        }
        let written = self
            .pool
            .read(slot)
            .and_then(|page| self.pool.write(copy, &[page]));
        if written.is_err() {
            // Its memory, if any, goes back.
            let _ = self.pool.free(&mut [copy]);
            return false;
        }
        self.replicas.copies += 1;
        true
    }

    /// Takes `slot`, to which no reference is left, out of the index; another slot with its content takes its place.
    pub(crate) fn unname(&mut self, slot: Slot, content: Content) {
        let named = self.index.remove(content.sketch, Holder::Shared(slot));
        let first = first_of(slot);
        let Some(origin) = self.replicas.origin(slot, content) else {
            self.replicas.copies -= u32::from(!named);
            return;
        };
        let alive =
            |&other: &Slot| self.references.get(other) > 0 && self.pool.content(other) == Some(content);
        let sibling = (first..first + GROUP).map(Slot::new).find(alive);
        let heir = sibling.or(Some(origin).filter(alive));
        // Not with any other: several may go at a time, and the one that the index names comes to its heir only here.
        if named && sibling.is_none() {
            self.replicas.origins.remove(&first);
        }
        match heir {
            Some(heir) if named => {
                self.index.set(content.sketch, Holder::Shared(heir));
                self.replicas.copies -= 1;
            }
            _ => self.replicas.copies -= u32::from(!named),
        }
    }
}

/// The first slot of the group that `slot` is in.
fn first_of(slot: Slot) -> u32 {
    slot.get() / GROUP * GROUP
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::Attachment;
    use crate::port::{Answer, Publication, Report};

    /// Reports pages `gfns` of `guest`, all with the content of `page`, and publishes what is asked for.
    fn share(domain: &mut Domain, guest: Attachment, gfns: std::ops::Range<u32>) -> Vec<Slot> {
        let page = [7; crate::page::PAGE_SIZE];
        let sketch = domain.hasher.sketch(&page);
        let (mut slots, mut answers, mut results) = (Vec::new(), Vec::new(), Vec::new());
        for gfn in gfns.map(Gfn::new) {
            let report = Report { gfn, sketch };
            domain.report(guest, &[report], &mut answers).unwrap();
            match answers[0] {
                Answer::Shared(slot) => slots.push(slot),
                Answer::Publish => {
                    domain.publish(guest, &[report], &[page], &mut results).unwrap();
                    let Publication::Granted(slot) = results[0] else {
                        panic!("{results:?}")
                    };
                    slots.push(slot);
                }
                Answer::Noted => {}
            }
            domain.check().unwrap();
        }
        slots
    }

    fn runs(slots: &[Slot]) -> usize {
        1 + slots
            .windows(2)
            .filter(|pair| pair[0].next() != Some(pair[1]))
            .count()
    }

    #[test]
    fn neighbours_with_a_popular_content_get_consecutive_slots() {
        let mut domain = Domain::new(1000).unwrap();
        let guest = domain.attach(4000).unwrap().attachment();
        assert_eq!(runs(&share(&mut domain, guest, 0..200)), 199);
        share(&mut domain, guest, 200..400);
        assert_eq!(runs(&share(&mut domain, guest, 400..1424)), 17);
        assert_eq!(domain.sizes().pool_pages, 65);
        assert_eq!(domain.sizes().hints, 0);
        // A page with other neighbours is served by any copy.
        share(&mut domain, guest, 2000..2001);
        assert_eq!(domain.sizes().pool_pages, 65);
    }

    #[test]
    fn a_group_ends_with_its_references_in_whatever_order_they_go() {
        for (backwards, at_a_time) in [(false, 1), (true, 1), (true, 300), (false, 300), (true, 1000)] {
            let mut domain = Domain::new(1000).unwrap();
            let guest = domain.attach(4000).unwrap().attachment();
            let generation = domain.session(guest).unwrap().generation;
            let mut slots = share(&mut domain, guest, 0..600);
            let mut offers = Vec::new();
            domain.offers(guest, &mut offers).unwrap();
            slots.extend(offers.iter().map(|offer| offer.slot));
            if backwards {
                slots.reverse();
            }
            for slots in slots.chunks(at_a_time) {
                domain.release(guest, generation, slots).unwrap();
                domain.check().unwrap();
            }
            assert_eq!(domain.sizes().pool_pages, 0);
            assert_eq!(domain.sizes().hints, 0);
            share(&mut domain, guest, 600..700);
        }
    }

    #[test]
    fn a_full_pool_gives_no_copies() {
        let mut domain = Domain::new(10).unwrap();
        let guest = domain.attach(4000).unwrap().attachment();
        share(&mut domain, guest, 0..1000);
        assert_eq!(domain.sizes().pool_pages, 10);
    }
}
