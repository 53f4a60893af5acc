//! Which frames of the guest's memory are in the balloon: one bit per frame.

use crate::frame::{Frame, Run};

/// A set of frames drawn from the guest's memory.
///
/// One bit per frame of memory, so 32 KiB per GiB, allocated once: a guest cannot make it grow.
#[derive(Debug, Clone)]
pub struct FrameSet {
    /// The memory the frames come from, ascending, disjoint, each with the number of its first bit.
    memory: Vec<(Run, u64)>,
    words: Vec<u64>,
    len: u64,
}

impl FrameSet {
    /// The empty set over the frames of `memory`, in any order; overlaps count once.
    pub fn new(memory: &[Run]) -> Self {
        let mut sorted = memory.to_vec();
        crate::frame::merge_runs(&mut sorted);
        let mut bits = 0;
        let memory = sorted
            .into_iter()
            .map(|run| {
                let start = bits;
                bits += run.count();
                (run, start)
            })
            .collect();
        Self {
            memory,
            words: vec![0; bits.div_ceil(64) as usize],
            len: 0,
        }
    }

    /// How many frames the set holds.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the set holds no frame.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many frames of memory there are to draw from.
    pub fn capacity(&self) -> u64 {
        self.memory.iter().map(|(run, _)| run.count()).sum()
    }

    /// The parts of `run` that are memory, ascending.
    pub fn clip(&self, run: Run) -> impl Iterator<Item = Run> + '_ {
        parts(&self.memory, run).map(|(part, _)| part)
    }

    /// Adds the frames of `run` that are memory. Returns how many of them were not in the set before.
    pub fn insert(&mut self, run: Run) -> u64 {
        let mut added = 0;
        for (word, mask) in words(&self.memory, run) {
            added += u64::from((mask & !self.words[word]).count_ones());
            self.words[word] |= mask;
        }
        self.len += added;
        added
    }

    /// Takes the frames of `run` out. Returns how many of them were in the set before.
    pub fn remove(&mut self, run: Run) -> u64 {
        let mut removed = 0;
        for (word, mask) in words(&self.memory, run) {
            removed += u64::from((mask & self.words[word]).count_ones());
            self.words[word] &= !mask;
        }
        self.len -= removed;
        removed
    }

    /// How many frames of `run` are in the set.
    pub fn count(&self, run: Run) -> u64 {
        words(&self.memory, run)
            .map(|(word, mask)| u64::from((self.words[word] & mask).count_ones()))
            .sum()
    }

    /// Takes every frame out.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.len = 0;
    }

    /// The frames of the set as maximal runs, ascending.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for &(memory, start) in &self.memory {
            let mut at = 0;
            while let Some(first) = self.next(start, memory.count(), at, Bit::Set) {
                let end = self
                    .next(start, memory.count(), first, Bit::Clear)
                    .unwrap_or(memory.count());
                let base = memory.first().number();
                runs.extend(Run::between(Frame::new(base + first), Frame::new(base + end)));
                at = end;
            }
        }
        crate::frame::merge_runs(&mut runs);
        runs
    }

    /// The first position at or after `at` whose bit is `want`, among the `count` bits from `start`.
    fn next(&self, start: u64, count: u64, at: u64, want: Bit) -> Option<u64> {
        words_from(start + at, count - at).find_map(|(word, mask)| {
            let bits = match want {
                Bit::Set => self.words[word],
                Bit::Clear => !self.words[word],
            } & mask;
            (bits != 0).then(|| word as u64 * 64 + u64::from(bits.trailing_zeros()) - start)
        })
    }
}

/// What [`FrameSet::next`] looks for.
#[derive(Clone, Copy)]
enum Bit {
    Set,
    Clear,
}

/// The parts of `run` that are memory, each with its first bit.
fn parts(memory: &[(Run, u64)], run: Run) -> impl Iterator<Item = (Run, u64)> + '_ {
    let from = memory.partition_point(|(memory, _)| memory.end() <= run.first());
    memory[from..].iter().map_while(move |&(memory, start)| {
        let part = run.overlap(memory)?;
        Some((part, start + part.first().number() - memory.first().number()))
    })
}

/// The words that hold the frames of `run`, each with the mask of their bits.
fn words(memory: &[(Run, u64)], run: Run) -> impl Iterator<Item = (usize, u64)> + '_ {
    parts(memory, run).flat_map(|(part, bit)| words_from(bit, part.count()))
}

/// The words that hold `count` bits from `bit` on, each with the mask of those bits.
fn words_from(bit: u64, count: u64) -> impl Iterator<Item = (usize, u64)> {
    let end = bit + count;
    let beyond = if count == 0 { 0 } else { end.div_ceil(64) };
    (bit / 64..beyond).map(move |word| {
        let low = bit.saturating_sub(word * 64);
        let high = (end - word * 64).min(64);
        // `low < high <= 64`: a word is visited only where the range has a bit in it.
        (word as usize, (u64::MAX >> (64 - (high - low))) << low)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn run(first: u64, count: u64) -> Run {
        Run::new(Frame::new(first), count).unwrap()
    }

    /// Two pieces of memory with a hole, the second not at a word's start: 70 + 66 frames.
    fn memory() -> [Run; 2] {
        [run(200, 66), run(10, 70)]
    }

    #[test]
    fn every_run_near_a_word_a_hole_and_an_end_agrees_with_a_plain_set() {
        let all: BTreeSet<u64> = (10..80).chain(200..266).collect();
        let edges: Vec<u64> = [
            0, 8, 9, 10, 11, 72, 73, 74, 75, 79, 80, 81, 199, 200, 201, 203, 204, 205, 264, 265, 266, 300,
        ]
        .into();
        for &first in &edges {
            for &end in edges.iter().filter(|&&end| end > first) {
                let one = run(first, end - first);
                let mut set = FrameSet::new(&memory());
                let oracle: BTreeSet<u64> = all.range(first..end).copied().collect();
                assert_eq!(set.insert(one), oracle.len() as u64);
                assert_eq!(set.insert(one), 0, "a second insert adds nothing");
                assert_eq!(
                    (set.len(), set.count(one)),
                    (oracle.len() as u64, oracle.len() as u64)
                );
                let listed: Vec<u64> = set
                    .runs()
                    .iter()
                    .flat_map(|run| run.first().number()..run.end().number())
                    .collect();
                assert_eq!(listed, Vec::from_iter(oracle.iter().copied()));
                let clipped: u64 = set.clip(one).map(Run::count).sum();
                assert_eq!(clipped, oracle.len() as u64);
                assert_eq!(set.remove(one), oracle.len() as u64);
                assert_eq!((set.remove(one), set.len()), (0, 0));
            }
        }
    }

    #[test]
    fn runs_that_touch_across_two_pieces_of_memory_are_one() {
        let mut set = FrameSet::new(&[run(0, 64), run(64, 64)]);
        assert_eq!(set.capacity(), 128);
        set.insert(run(60, 10));
        assert_eq!(set.runs(), [run(60, 10)]);
    }

    #[test]
    fn memory_that_is_named_twice_counts_once() {
        assert_eq!(FrameSet::new(&[run(0, 64), run(32, 64)]).capacity(), 96);
    }
}
