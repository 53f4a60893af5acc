//! Pages that probably equal pages of other guests, until they come under management.
//!
//! A guest reads most of what it has in common with others while it boots, when all its memory still lies in blocks of
//! 2 MiB that are not watched. Which pages those were is kept here; the blocks with most of them are split first, and
//! then their pages are looked at first.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use page_share::{Gfn, PageRun, Region, State};

use super::lock;

/// Pages of a block.
const BLOCK: u32 = 512;

/// One bit for each page of a block.
type Bits = [u64; BLOCK as usize / 64];

/// What was read from disks that guests share. At most 72 bytes for each 2 MiB of guest memory.
#[derive(Debug, Default)]
pub struct SharedReadBlocks {
    waiting: Mutex<BTreeMap<u32, Bits>>,
    told: AtomicU64,
}

impl SharedReadBlocks {
    /// Tells `region` of `run`, or, where it does not watch those pages yet, remembers it. Never waits for a scan.
    pub fn add(&self, region: &Region, run: PageRun) {
        self.told.fetch_add(u64::from(run.count), Ordering::Relaxed);
        if region.state(run.first) != State::Huge {
            return region.prioritize(run);
        }
        let mut waiting = self.waiting();
        let first = run.first.get();
        let end = first.saturating_add(run.count).min(region.page_limit());
        for page in first..end {
            let bits = waiting.entry(page / BLOCK).or_default();
            bits[(page % BLOCK / 64) as usize] |= 1 << (page % 64);
        }
    }

    /// Puts up to `blocks` blocks under management, those with most such pages first, and has those pages looked at.
    pub(crate) fn split(&self, region: &Region, blocks: u32) {
        let mut left = blocks;
        while left > 0 {
            let Some((block, bits)) = self.take_fullest() else {
                break;
            };
            left -= region
                .split_run(PageRun::new(Gfn::new(block * BLOCK), BLOCK))
                .min(left);
            for (first, count) in runs(&bits) {
                region.prioritize(PageRun::new(Gfn::new(block * BLOCK + first), count));
            }
        }
        region.split_blocks(left);
    }

    /// Pages that were told of so far.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    fn take_fullest(&self) -> Option<(u32, Bits)> {
        let mut waiting = self.waiting();
        let count = |bits: &Bits| bits.iter().map(|word| word.count_ones()).sum::<u32>();
        let block = *waiting.iter().max_by_key(|(_, bits)| count(bits))?.0;
        waiting.remove_entry(&block)
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u32, Bits>> {
        lock(&self.waiting)
    }
}

/// First page and length of each run of set bits.
fn runs(bits: &Bits) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for page in (0..BLOCK).filter(|page| bits[(page / 64) as usize] & 1 << (page % 64) != 0) {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == page => *count += 1,
            _ => runs.push((page, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use page_share::{AnonymousMemory, Blocks, Options};

    use super::*;

    #[test]
    fn runs_of_bits_are_found_across_words() {
        let mut bits = [0; 8];
        bits[0] = 1 | 1 << 63;
        bits[1] = 0b11;
        bits[7] = 1 << 63;
        assert_eq!(runs(&bits), [(0, 1), (63, 3), (511, 1)]);
        assert!(runs(&[0; 8]).is_empty());
    }

    #[test]
    fn the_block_with_most_pages_comes_first_and_hostile_runs_cost_nothing() {
        let blocks = SharedReadBlocks::default();
        let memory = AnonymousMemory::new(64).unwrap();
        let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
        // Watched already, or no memory at all: goes on as a hint, and nothing waits.
        blocks.add(&region, PageRun::new(Gfn::new(3), 2));
        blocks.add(&region, PageRun::new(Gfn::new(1 << 20), 4));
        assert!(blocks.waiting().is_empty());
        blocks.waiting().insert(7, [1; 8]);
        blocks.waiting().insert(9, [3; 8]);
        assert_eq!(blocks.take_fullest(), Some((9, [3; 8])));
        assert_eq!(blocks.told(), 6);
        region.scan_pass();
    }

    #[test]
    fn a_block_that_was_told_of_is_split_before_any_other() {
        for told in 0..4 {
            let memory = AnonymousMemory::new(4 * BLOCK).unwrap();
            let options = Options::default().with_blocks(Blocks::Huge);
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
            let blocks = SharedReadBlocks::default();
            blocks.add(&region, PageRun::new(Gfn::new(told * BLOCK + 9), 3));
            blocks.split(&region, 1);
            let huge = |block: &u32| region.state(Gfn::new(block * BLOCK)) == State::Huge;
            let left: Vec<u32> = (0..4).filter(huge).collect();
            assert_eq!(left, Vec::from_iter((0..4).filter(|block| *block != told)));
        }
    }
}
