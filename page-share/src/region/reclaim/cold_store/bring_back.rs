//! Pages come back from the cold store, or are lost.

use std::fmt::Display;

use super::ColdStore;
use crate::page::Page;
use crate::region::run::PageRun;
use crate::region::table::{Claim, PageTable, State};
use crate::swap::{SwapError, SwapSlot};

impl ColdStore {
    /// Brings back claimed compressed or swapped pages, at most [`NEIGHBOURS`](super::NEIGHBOURS), of which an access or
    /// a caller wants `wanted`. Returns the number that came back. Waits for the disk and for events to be read: never for
    /// the fault handler.
    pub(crate) fn bring_back(&self, claim: Claim, wanted: PageRun, buffer: &mut [Page]) -> u32 {
        match claim.from() {
            State::Compressed => self.bring_back_compressed(claim, buffer),
            _ => self.bring_back_swapped(claim, wanted, buffer),
        }
    }

    /// Brings back compressed pages; damaged ones become lost.
    fn bring_back_compressed(&self, claim: Claim, buffer: &mut [Page]) -> u32 {
        let (mut left, mut count) = (claim, 0);
        while left.run().count > 0 {
            let (intact, error) = self.decompress_run(&left, buffer);
            let (back, rest) = left.split(intact);
            left = rest;
            count += intact;
            if intact > 0 {
                self.return_decompressed(back, &buffer[..intact as usize]);
            } else {
                drop(back);
            }
            if let Some(error) = error {
                let (damaged, rest) = left.split(1);
                left = rest;
                self.lose(damaged, &error);
            }
        }
        drop(left);
        count
    }

    /// Fills claimed pages with what was stored of them.
    fn return_decompressed(&self, claim: Claim, pages: &[Page]) {
        let (run, guest) = (claim.run(), &self.guest);
        guest.copy_all(run, pages);
        self.forget(&claim);
        self.guest.counters().pages_decompressed.add(u64::from(run.count));
        self.guest.settle(claim, State::Private);
    }

    /// Reads swapped pages and brings them back, with one read for each run of
    /// consecutive slots; the one with pages that are `wanted` comes first. Of pages that are not what was written, those
    /// in `wanted` become lost and others stay in the file. So do pages that cannot be read: a thread that touches them waits
    /// until they can. At the region's end all of these are lost. While growth is gated, pages that are not `wanted` stay in
    /// the file too.
    fn bring_back_swapped(&self, claim: Claim, wanted: PageRun, buffer: &mut [Page]) -> u32 {
        let mut count = 0;
        for claim in by_slot(self.guest.table(), claim, wanted) {
            let length = claim.run().count as usize;
            count += self.bring_back_consecutive(claim, wanted, &mut buffer[..length]);
        }
        count
    }

    /// The same for pages with consecutive slots.
    fn bring_back_consecutive(&self, claim: Claim, wanted: PageRun, buffer: &mut [Page]) -> u32 {
        let run = claim.run();
        if self.read(&claim, run, buffer).is_ok() {
            return self.return_swapped(claim, wanted, buffer);
        }
        // One at least is bad; the others must not suffer.
        let (mut left, mut count) = (claim, 0);
        while left.run().count > 0 {
            let (one, rest) = left.split(1);
            left = rest;
            let is_wanted = wanted.contains(one.run().first);
            match self.read(&one, one.run(), &mut buffer[..1]) {
                Ok(()) => count += self.return_swapped(one, wanted, &buffer[..1]),
                // Not what was written, and no other disk has it.
                Err(error @ (SwapError::Corrupt(_) | SwapError::Unknown(_))) if is_wanted => {
                    self.lose(one, &error);
                }
                // Back in the file, it would be forgotten with the region, and read zero.
                Err(error) if self.guest.is_giving_up() => self.lose(one, &error),
                Err(error) => {
                    if self.guest.counters().swap_reads_failed.get().is_power_of_two() {
                        log::warn!("{:?} cannot be read from the swap file now: {error:?}", one.run());
                    }
                    self.guest.counters().swap_reads_failed.add(1);
                    self.guest.settle(one, State::Swapped);
                }
            }
        }
        drop(left);
        count
    }

    /// Fills claimed pages with what was read of them. While growth is gated those that are not `wanted` stay in the file:
    /// no access asked for them. Returns the number that came back.
    fn return_swapped(&self, claim: Claim, wanted: PageRun, pages: &[Page]) -> u32 {
        let (first, counters) = (claim.run().first, self.guest.counters());
        let mut count = 0;
        let passing = self.guest.gate().pass();
        for (claim, comes) in claim.split_by(|page| passing.is_some() || wanted.contains(page)) {
            if !comes {
                self.guest.unclaim(claim);
                continue;
            }
            let run = claim.run();
            self.forget(&claim);
            let neighbours = run.pages().filter(|&page| !wanted.contains(page));
            counters.neighbours_swapped_in.add(neighbours.count() as u64);
            counters.pages_swapped_in.add(u64::from(run.count));
            let at = run.first.since(first) as usize;
            self.guest.copy_all(run, &pages[at..][..run.count as usize]);
            self.guest.settle(claim, State::Private);
            count += run.count;
        }
        count
    }

    pub(in crate::region::reclaim) fn lose(&self, claim: Claim, error: &dyn Display) {
        log::error!("{:?} is lost: {error}", claim.run().first);
        self.guest.counters().pages_lost.add(1);
        self.forget(&claim);
        self.poison(claim);
    }

    /// Makes a page that is lost fail at every access.
    fn poison(&self, claim: Claim) {
        let run = claim.run();
        self.guest.insist("mark as broken", self.guest.span(run), || {
            self.guest.try_poison(run).stopped.map_or(Ok(()), Err)
        });
        self.guest.settle(claim, State::Lost);
    }
}

/// Splits claimed pages into runs with consecutive slots, the one with wanted pages first.
fn by_slot(table: &PageTable, claim: Claim, wanted: PageRun) -> Vec<Claim> {
    let (mut left, mut runs) = (claim, Vec::new());
    while left.run().count > 0 {
        let slot = |page| table.location::<SwapSlot>(&left, page).bits();
        let pages = left.run().pages();
        let following = pages.clone().zip(pages.skip(1));
        let joined = following.take_while(|&(a, b)| slot(a).checked_add(1) == Some(slot(b)));
        let length = 1 + joined.count() as u32;
        let (run, rest) = left.split(length);
        left = rest;
        runs.push(run);
    }
    drop(left);
    runs.sort_by_key(|claim| !claim.run().pages().any(|page| wanted.contains(page)));
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Gfn;
    use crate::region::table::Pinned;

    #[test]
    fn the_wanted_page_is_read_before_its_neighbours() {
        let table = PageTable::new(16);
        let all = PageRun::new(Gfn::new(0), 16);
        table.settle(table.found(all), State::Private);
        let (claim, _) = table.claim_run(all, State::Private, Pinned::Ignore);
        let claim = claim.unwrap();
        // Three runs of slots: 40 to 44, 7 to 14, and 30 to 32.
        let slots = (40..45).chain(7..15).chain(30..33).map(SwapSlot::from_bits);
        all.pages()
            .zip(slots)
            .for_each(|(page, slot)| table.set_location(&claim, page, slot));
        table.settle(claim, State::Swapped);
        for (wanted, order) in [(2, [0, 5, 13]), (6, [5, 0, 13]), (15, [13, 0, 5])] {
            let (claim, _) = table.claim_run(all, State::Swapped, Pinned::Ignore);
            let runs = by_slot(&table, claim.unwrap(), PageRun::one(Gfn::new(wanted)));
            let firsts: Vec<u32> = runs.iter().map(|it| it.run().first.get()).collect();
            assert_eq!(firsts, order, "page {wanted}");
            for claim in runs {
                table.settle(claim, State::Swapped);
            }
        }
    }
}
