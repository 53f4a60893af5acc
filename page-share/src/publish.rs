//! How a content enters the pool: verified, placed, written, and only then visible.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use crate::attach::Attachment;
use crate::domain::Domain;
use crate::hash::{PageHash, Sketch};
use crate::index::Holder;
use crate::page::{Gfn, GuestId, Page, Slot};
use crate::pool::{Content, Owners};
use crate::port::{Offer, PUBLISH_BATCH, PortError, Publication, Refusal, Report};

/// A page that has a slot reserved and is not written yet.
struct Placed {
    /// Which page of the batch.
    item: usize,
    slot: Slot,
    /// Who gets the offer.
    hint: (GuestId, Gfn),
}

/// What is to be done with one page of a batch.
enum PublishStep {
    Done(Publication),
    Write(Placed),
}

impl Domain {
    /// See [`Port::publish`](crate::port::Port::publish).
    ///
    /// `bytes` must be the manager's own copy, which no other process can write.
    ///
    /// # Errors
    /// [`PortError::Superseded`] and [`PortError::Invalid`]; nothing was done then.
    ///
    /// # Panics
    /// When the two slices differ in length.
    pub fn publish(
        &mut self,
        from: Attachment,
        pages: &[Report],
        bytes: &[Page],
        results: &mut Vec<Publication>,
    ) -> Result<(), PortError> {
        assert_eq!(pages.len(), bytes.len(), "every page comes with its bytes");
        results.clear();
        let guest = self.check_pages(from, pages.iter().map(|page| page.gfn), PUBLISH_BATCH)?;
        let mut batch = Batch {
            guest,
            pages,
            bytes,
            hashes: self.hasher.hashes(bytes),
            placed: Vec::with_capacity(pages.len()),
            sketches: HashSet::with_capacity_and_hasher(pages.len(), BuildHasherDefault::default()),
        };
        self.index.warm(pages.iter().map(|page| page.sketch));
        for (item, page) in pages.iter().enumerate() {
            if batch.sketches.contains(&page.sketch) {
                // One content twice in a batch, or twins: the first must be visible before the second is looked at.
                self.write(&mut batch, results);
            }
            match self.step(&batch, item) {
                PublishStep::Done(result) => results.push(result),
                PublishStep::Write(placed) => {
                    results.push(Publication::Granted(placed.slot));
                    batch.sketches.insert(page.sketch);
                    batch.placed.push(placed);
                }
            }
        }
        self.write(&mut batch, results);
        Ok(())
    }

    /// Decides about one page and reserves a slot if it needs one.
    fn step(&mut self, batch: &Batch<'_>, item: usize) -> PublishStep {
        let Report { gfn, sketch } = batch.pages[item];
        if self.hasher.sketch(&batch.bytes[item]) != sketch {
            self.counters.refused_mismatch += 1;
            return PublishStep::Done(Publication::Refused(Refusal::SketchMismatch));
        }
        let done = match self.index.find(sketch) {
            Some(Holder::Hint(owner, hint)) if (owner, hint) != (batch.guest, gfn) => {
                return self.reserve(batch, item, (owner, hint));
            }
            Some(Holder::Shared(slot)) => {
                self.join(batch.guest, gfn, slot, Content::new(sketch, batch.hashes[item]))
            }
            Some(Holder::Hint(..)) => Publication::Noted,
            None => {
                self.drop_hint(batch.guest, gfn);
                self.add_hint(batch.guest, gfn, sketch);
                Publication::Noted
            }
        };
        PublishStep::Done(done)
    }

    fn reserve(&mut self, batch: &Batch<'_>, item: usize, hint: (GuestId, Gfn)) -> PublishStep {
        let Report { gfn, sketch } = batch.pages[item];
        if !self.may_hold_more(hint.0) {
            // The other guest cannot take an offer: this page is the better hint.
            self.drop_hint(hint.0, hint.1);
            self.drop_hint(batch.guest, gfn);
            self.add_hint(batch.guest, gfn, sketch);
            return PublishStep::Done(Publication::Noted);
        }
        if self.may_hold_more(batch.guest) {
            let content = Content::new(sketch, batch.hashes[item]);
            let owners = Owners::of(batch.guest, hint.0);
            if let Some(slot) = self.pool.place(batch.guest, owners, content) {
                // Now, not when it is visible: a later page of this batch may have the same number.
                self.drop_hint(batch.guest, gfn);
                return PublishStep::Write(Placed { item, slot, hint });
            }
        }
        self.counters.refused_full += 1;
        PublishStep::Done(Publication::Refused(Refusal::PoolFull))
    }

    /// A page whose sketch the pool has already: a reference to it if the content is the same.
    fn join(&mut self, guest: GuestId, gfn: Gfn, slot: Slot, content: Content) -> Publication {
        if self.pool.content(slot) != Some(content) {
            self.counters.refused_collision += 1;
            return Publication::Refused(Refusal::Collision);
        }
        let slot = self.pick(guest, gfn, slot);
        if !self.grant(guest, slot) {
            self.counters.refused_full += 1;
            return Publication::Refused(Refusal::PoolFull);
        }
        Publication::Granted(slot)
    }

    /// Writes what is placed, in runs, and makes it visible. What the kernel does not take is refused.
    fn write(&mut self, batch: &mut Batch<'_>, results: &mut [Publication]) {
        batch.sketches.clear();
        let placed = std::mem::take(&mut batch.placed);
        let follows = |before: &Placed, after: &Placed| {
            after.item == before.item + 1 && before.slot.next() == Some(after.slot)
        };
        for run in placed.chunk_by(follows) {
            let first = &run[0];
            let bytes = &batch.bytes[first.item..first.item + run.len()];
            let written = self.pool.write(first.slot, bytes);
            for page in run {
                if written.is_ok() {
                    self.make_visible(batch, page);
                } else {
                    // Its memory, if any, goes back; the hint stays what it was.
                    let _ = self.pool.free(&mut [page.slot]);
                    self.counters.refused_full += 1;
                    results[page.item] = Publication::Refused(Refusal::PoolFull);
                }
            }
        }
    }

    fn make_visible(&mut self, batch: &Batch<'_>, page: &Placed) {
        let Placed {
            slot,
            hint: (owner, hint),
            ..
        } = *page;
        let sketch = batch.pages[page.item].sketch;
        // The owner may have been noted for another content since, in this very batch: that hint stays.
        if self.index.find(sketch) == Some(Holder::Hint(owner, hint)) {
            self.drop_hint(owner, hint);
        }
        self.index.set(sketch, Holder::Shared(slot));
        self.hold(batch.guest, slot);
        self.hold(owner, slot);
        if let Some(state) = self.guests.get_mut(&owner) {
            state.offer(Offer { gfn: hint, slot });
        }
        self.counters.published += 1;
        self.counters.offered += 1;
    }
}

/// A call to publish, as far as it has come.
struct Batch<'a> {
    guest: GuestId,
    pages: &'a [Report],
    bytes: &'a [Page],
    /// Of each page: nearly all are needed, and many at once take less time.
    hashes: Vec<PageHash>,
    /// Reserved, in item order, not written.
    placed: Vec<Placed>,
    /// Their sketches.
    sketches: HashSet<Sketch, BuildHasherDefault<AsIs>>,
}

/// A sketch is a hash already. Those of a process that makes them up may all meet in one place of the table, which has no
/// more of them than a batch.
#[derive(Default)]
pub(crate) struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, sketch: u64) {
        self.0 = sketch;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::twins;
    use crate::port::Answer;

    #[test]
    fn a_twin_is_refused_and_the_first_content_stays() {
        let mut domain = Domain::new(100).unwrap();
        let [first, twin] = twins(&domain.hasher);
        let sketch = domain.hasher.sketch(&first);
        let guest = domain.attach(10).unwrap().attachment();
        let named = |gfn| Report {
            gfn: Gfn::new(gfn),
            sketch,
        };
        let (mut answers, mut results) = (Vec::new(), Vec::new());
        domain.report(guest, &[named(1), named(2)], &mut answers).unwrap();
        domain
            .publish(guest, &[named(2)], &[first], &mut results)
            .unwrap();
        let slot = Slot::new(0);
        assert_eq!(results, [Publication::Granted(slot)]);
        domain.publish(guest, &[named(3)], &[twin], &mut results).unwrap();
        assert_eq!(results, [Publication::Refused(Refusal::Collision)]);
        assert_eq!(domain.counters().refused_collision, 1);
        // The twin's owner is answered like any other, compares, and gives the reference back.
        domain.report(guest, &[named(3)], &mut answers).unwrap();
        assert_eq!(answers, [Answer::Shared(slot)]);
        assert_eq!(domain.pool.read(slot).unwrap(), first);
        domain.check().unwrap();
    }

    #[test]
    fn what_the_kernel_does_not_take_is_refused_and_stays_a_hint() {
        let mut domain = Domain::new(100).unwrap();
        let guest = domain.attach(10).unwrap().attachment();
        let page = [7; crate::page::PAGE_SIZE];
        let sketch = domain.hasher.sketch(&page);
        let named = |gfn| Report {
            gfn: Gfn::new(gfn),
            sketch,
        };
        let (mut answers, mut results) = (Vec::new(), Vec::new());
        domain.report(guest, &[named(1), named(2)], &mut answers).unwrap();
        domain.pool.fail_writes();
        domain
            .publish(guest, &[named(2), named(3)], &[page; 2], &mut results)
            .unwrap();
        assert_eq!(results, [Publication::Refused(Refusal::PoolFull); 2]);
        domain.check().unwrap();
        assert_eq!(domain.sizes().pool_pages, 0);
        assert_eq!(domain.sizes().hints, 1);
    }

    #[test]
    fn a_hole_that_the_kernel_refuses_is_counted_and_its_slot_is_free() {
        let mut domain = Domain::new(100).unwrap();
        let guest = domain.attach(10).unwrap().attachment();
        let page = [7; crate::page::PAGE_SIZE];
        let sketch = domain.hasher.sketch(&page);
        let named = [1, 2].map(|gfn| Report {
            gfn: Gfn::new(gfn),
            sketch,
        });
        let mut results = Vec::new();
        domain.report(guest, &named, &mut Vec::new()).unwrap();
        domain.publish(guest, &named[1..], &[page], &mut results).unwrap();
        let slot = Slot::new(0);
        assert_eq!(results, [Publication::Granted(slot)]);
        domain.pool.fail_writes();
        domain.release(guest, domain.generation, &[slot, slot]).unwrap();
        let counters = domain.counters();
        assert_eq!((counters.punched, counters.punch_failures), (0, 1));
        assert_eq!(domain.sizes().pool_pages, 0);
    }
}
