//! Backoff: which chunks a background scan leaves alone for a while.
//!
//! Looking at memory that is being written costs its guest something: each written page is armed, which makes other
//! CPUs flush their TLBs, and faults at its next write. Where that brings nothing to merge, again and again, a chunk
//! is looked at less and less often.

use std::time::Duration;

use crate::page::Gfn;
use crate::region::run::PageRun;
use crate::region::scan::CHUNK;

/// Looks without a find before a chunk rests.
const SURE: u8 = 2;

/// The first rest, in us. Each following one is twice as long.
const FIRST: u64 = 10_000_000;

/// How often rests double: the longest are 40 s.
const DOUBLINGS: u8 = 2;

/// Between two steps of the scan no more than this counts, in us: a scan that was stopped has no rests to make up for.
const STEP: u64 = 100_000;

/// A look was worth it if one of this many armed pages could be merged.
const WORTH: u32 = 8;

/// Pages of a hot chunk that are tried before the others.
const PROBE: u32 = 16;

/// What a look at a run found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Looked {
    /// Pages in memory of their own: those that can be armed.
    pub(super) own: u32,
    /// Pages that had been written, and were armed.
    pub(super) written: u32,
}

/// What scanning one chunk has brought lately.
#[derive(Debug, Clone, Copy, Default)]
struct Chunk {
    /// Where the clock must be before the next look, in us.
    due: u64,
    /// Looks without a find, one after the other.
    vain: u8,
    /// It rested because most of it is written between any two looks.
    hot: bool,
    /// Pages armed by the look before, which the next one may find quiet.
    armed: u32,
    /// Pages of these that could be merged.
    gained: u32,
}

/// All chunks of a region.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    chunks: Vec<Chunk>,
    /// For how long there has been scanning, in us.
    clock: u64,
}

impl Backoff {
    /// Everything is to be looked at.
    pub(super) fn end(&mut self) {
        self.chunks.clear();
    }

    /// What is to be looked at of the chunk that `whole` is: nothing while it rests, and where it was hot a few pages
    /// first, at another place after each rest, of those that `is_own` says can be armed.
    pub(super) fn due(&self, whole: PageRun, is_own: impl Fn(Gfn) -> bool) -> Option<PageRun> {
        let number = (whole.first.get() / CHUNK) as usize;
        let chunk = self.chunks.get(number).copied().unwrap_or_default();
        if chunk.due > self.clock {
            return None;
        }
        if !chunk.hot {
            return Some(whole);
        }
        let mut groups: Vec<PageRun> = whole.pieces(PROBE).collect();
        let start = chunk.due % groups.len().max(1) as u64;
        groups.rotate_left(start as usize);
        let own = |group: &PageRun| group.pages().filter(|&page| is_own(page)).count();
        groups.into_iter().max_by_key(own)
    }

    /// A step of the scan begins, this long after the one before.
    pub(super) fn step(&mut self, after: Duration) {
        self.clock += u64::try_from(after.as_micros()).map_or(STEP, |us| us.min(STEP));
    }

    /// `page` can be merged.
    pub(super) fn gain(&mut self, page: Gfn) {
        let chunk = self.chunk(page);
        chunk.gained += 1;
        if chunk.gained * WORTH >= chunk.armed {
            (chunk.due, chunk.vain, chunk.hot) = (0, 0, false);
        }
    }

    /// A look at the chunk with `page`, or at a part of it, is over. `random` keeps chunks that began to rest together
    /// from being due together.
    pub(super) fn looked(&mut self, page: Gfn, look: Looked, random: u64) {
        let clock = self.clock;
        let chunk = self.chunk(page);
        let written = look.written;
        let most = written > 0 && written * 2 >= look.own;
        let again = chunk.armed > 0;
        // All of a chunk that rested has had long to be written: only what was armed by the look before counts there.
        let hot = most && (again || !chunk.hot);
        let in_vain = hot || (again && !chunk.hot && chunk.gained * WORTH < chunk.armed);
        if in_vain {
            chunk.vain = (chunk.vain + 1).min(SURE + DOUBLINGS);
        } else if chunk.armed + written == 0 {
            chunk.vain = chunk.vain.saturating_sub(1);
        }
        let rests = in_vain && chunk.vain >= SURE;
        if rests {
            let length = FIRST << (chunk.vain - SURE);
            chunk.due = clock + length - random % (length / 2);
        }
        chunk.hot = if rests { hot } else { chunk.hot && most };
        chunk.armed = if rests { 0 } else { written };
        chunk.gained = 0;
    }

    fn chunk(&mut self, page: Gfn) -> &mut Chunk {
        let number = (page.get() / CHUNK) as usize;
        if self.chunks.len() <= number {
            self.chunks.resize(number + 1, Chunk::default());
        }
        &mut self.chunks[number]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: PageRun = PageRun::new(Gfn::new(0), CHUNK);
    const HOT: Looked = Looked {
        own: CHUNK,
        written: CHUNK,
    };

    /// Scans a region of one chunk once a second. `written` says what is written of a run when it is looked at for
    /// the nth time, and `gained` how many pages were merged after that. Returns the looks: second and pages.
    fn looks(seconds: u64, written: impl Fn(usize, u32) -> u32, gained: u32) -> Vec<(u64, u32)> {
        let mut backoff = Backoff::default();
        let mut looks = Vec::new();
        for second in 0..seconds {
            if let Some(run) = backoff.due(WHOLE, |_| true) {
                (0..gained).for_each(|_| backoff.gain(WHOLE.first));
                let written = written(looks.len(), run.count);
                let own = run.count;
                backoff.looked(run.first, Looked { own, written }, 0);
                looks.push((second, run.count));
            }
            (0..20).for_each(|_| backoff.step(Duration::from_millis(50)));
        }
        looks
    }

    #[test]
    fn a_hot_chunk_is_probed_less_and_less_often() {
        let probes = |start| [(start, PROBE), (start + 1, PROBE)];
        let want: Vec<_> = [(0, CHUNK), (1, CHUNK)]
            .into_iter()
            .chain([11, 32, 73, 114, 155].into_iter().flat_map(probes))
            .collect();
        assert_eq!(looks(157, |_, pages| pages * 2 / 3, 0), want);
    }

    #[test]
    fn a_hot_chunk_that_has_cooled_down_is_looked_at_as_a_whole() {
        let (hot, probe) = ([(0, CHUNK), (1, CHUNK)], (11, PROBE));
        // Written all over while it rested, and quiet since.
        let quiet_since = |look, pages| if look < 3 { pages } else { 0 };
        let all = looks(14, quiet_since, 0);
        assert_eq!(all, [hot[0], hot[1], probe, (12, PROBE), (13, CHUNK)]);
        // Quiet already when it was armed for the last time.
        let quiet_before = |look, pages| if look < 2 { pages } else { 0 };
        assert_eq!(looks(13, quiet_before, 0), [hot[0], hot[1], probe, (12, CHUNK)]);
    }

    #[test]
    fn a_chunk_whose_new_pages_equal_no_others_rests() {
        let starts: Vec<u64> = looks(50, |_, _| 9, 0).iter().map(|look| look.0).collect();
        assert_eq!(starts, [0, 1, 2, 12, 13, 33, 34]);
    }

    #[test]
    fn idle_chunks_and_those_that_gain_are_looked_at_in_every_pass() {
        assert_eq!(looks(100, |_, _| 0, 0).len(), 100);
        assert_eq!(looks(100, |_, _| 64, 8).len(), 100);
        // Written once from end to end, as when a guest boots.
        assert_eq!(
            looks(100, |look, pages| if look == 0 { pages } else { 0 }, 64).len(),
            100
        );
    }

    #[test]
    fn late_gains_and_new_managers_end_a_rest() {
        let mut backoff = Backoff::default();
        (0..2).for_each(|_| backoff.looked(WHOLE.first, HOT, 7));
        assert_eq!(backoff.due(WHOLE, |_| true), None);
        backoff.gain(Gfn::new(3));
        assert_eq!(backoff.due(WHOLE, |_| true), Some(WHOLE));
        (0..2).for_each(|_| backoff.looked(WHOLE.first, HOT, 7));
        assert_eq!(backoff.due(WHOLE, |_| true), None);
        backoff.end();
        assert_eq!(backoff.due(WHOLE, |_| true), Some(WHOLE));
    }

    #[test]
    fn pages_that_cannot_be_armed_neither_count_nor_are_they_probed() {
        let mut backoff = Backoff::default();
        let shared_mostly = Looked { own: 40, written: 30 };
        (0..2).for_each(|_| backoff.looked(WHOLE.first, shared_mostly, 7));
        // No thread scanned for a minute.
        backoff.step(Duration::from_secs(60));
        assert_eq!(backoff.due(WHOLE, |_| true), None);
        (0..FIRST / STEP).for_each(|_| backoff.step(Duration::from_micros(STEP)));
        let of_its_own = 200..240;
        let probe = backoff
            .due(WHOLE, |page| of_its_own.contains(&page.get()))
            .unwrap();
        assert_eq!(
            (
                probe.count,
                probe.pages().all(|page| of_its_own.contains(&page.get()))
            ),
            (PROBE, true)
        );
    }
}
