//! Guest page frames: the unit in which the balloon counts, whatever the page size of guest or host.

use std::fmt;

/// Bytes of one frame. Virtio fixes it at 4 KiB for every architecture (virtio 1.3, section 5.5.6).
pub const FRAME_SIZE: u64 = 4096;

/// The number of one 4 KiB guest page frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(u64);

impl Frame {
    /// The frame with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The frame that holds the guest-physical `address`.
    pub const fn containing(address: u64) -> Self {
        Self(address / FRAME_SIZE)
    }

    /// The frame's number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The guest-physical address of the frame's first byte; `None` past the end of the address space.
    pub const fn address(self) -> Option<u64> {
        self.0.checked_mul(FRAME_SIZE)
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A run of consecutive frames, never empty.
///
/// With the feature `serde` it is written as `{"first": …, "count": …}`; an empty one is refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "serde",
    serde(try_from = "saved::SavedRun", into = "saved::SavedRun")
)]
pub struct Run {
    first: u64,
    end: u64,
}

impl Run {
    /// The run of `count` frames that starts at `first`; `None` when it is empty or leaves the number space.
    pub const fn new(first: Frame, count: u64) -> Option<Self> {
        match first.0.checked_add(count) {
            Some(end) if count > 0 => Some(Self { first: first.0, end }),
            _ => None,
        }
    }

    /// The run from `first` up to, not including, `end`; `None` when it is empty.
    pub const fn between(first: Frame, end: Frame) -> Option<Self> {
        if first.0 < end.0 {
            Some(Self {
                first: first.0,
                end: end.0,
            })
        } else {
            None
        }
    }

    /// The whole frames inside `len` bytes at guest-physical `address`; `None` when there is not one.
    ///
    /// Frames that the range covers only in part are left out: the guest did not say that they are free.
    pub const fn within(address: u64, len: u64) -> Option<Self> {
        let Some(end) = address.checked_add(len) else {
            return None;
        };
        Self::between(Frame(address.div_ceil(FRAME_SIZE)), Frame(end / FRAME_SIZE))
    }

    /// The first frame.
    pub const fn first(self) -> Frame {
        Frame(self.first)
    }

    /// The frame after the last one.
    pub const fn end(self) -> Frame {
        Frame(self.end)
    }

    /// How many frames the run has, at least one.
    pub const fn count(self) -> u64 {
        self.end - self.first
    }

    /// The frames that this run and `other` have in common.
    pub fn overlap(self, other: Self) -> Option<Self> {
        Self::between(Frame(self.first.max(other.first)), Frame(self.end.min(other.end)))
    }

    /// The largest part of the run that starts and ends at a multiple of `unit` frames.
    ///
    /// # Panics
    /// When `unit` is zero, which is a bug of the caller.
    pub const fn aligned_inward(self, unit: u64) -> Option<Self> {
        Self::between(
            Frame(self.first.div_ceil(unit).saturating_mul(unit)),
            Frame(self.end / unit * unit),
        )
    }
}

#[cfg(feature = "serde")]
mod saved {
    //! A run as it is written.

    use super::Frame;

    #[derive(serde::Serialize, serde::Deserialize)]
    pub(super) struct SavedRun {
        first: u64,
        count: u64,
    }

    impl From<super::Run> for SavedRun {
        fn from(run: super::Run) -> Self {
            Self {
                first: run.first,
                count: run.count(),
            }
        }
    }

    impl TryFrom<SavedRun> for super::Run {
        type Error = String;

        fn try_from(run: SavedRun) -> Result<Self, String> {
            let SavedRun { first, count } = run;
            Self::new(Frame::new(first), count)
                .ok_or_else(|| format!("{count} frames from {first:#x} on are not a run of frames"))
        }
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.first, self.count())
    }
}

/// Sorts `frames`, drops repeats and appends the runs they form to `runs`. Returns how many repeats there were.
///
/// Linux fills a buffer mostly in descending order: `sort_unstable` recognises ascending and descending input
/// and takes linear time there.
pub fn merge_frames(frames: &mut [u32], runs: &mut Vec<Run>) -> u64 {
    frames.sort_unstable();
    let mut repeats = 0;
    let mut open: Option<Run> = None;
    for number in frames.iter().map(|&number| u64::from(number)) {
        match &mut open {
            Some(run) if run.end == number => run.end += 1,
            Some(run) if run.end == number + 1 => repeats += 1,
            _ => runs.extend(open.replace(Run {
                first: number,
                end: number + 1,
            })),
        }
    }
    runs.extend(open);
    repeats
}

/// Sorts `runs` and joins those that touch or overlap. Returns how many frames were named more than once.
pub fn merge_runs(runs: &mut Vec<Run>) -> u64 {
    runs.sort_unstable();
    let mut repeats = 0;
    runs.dedup_by(|next, run| {
        if next.first > run.end {
            return false;
        }
        repeats += run.end.min(next.end) - next.first;
        run.end = run.end.max(next.end);
        true
    });
    repeats
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn frames_of(runs: &[Run]) -> Vec<u64> {
        runs.iter().flat_map(|run| run.first..run.end).collect()
    }

    /// Every run is followed by a gap: nothing that could be one call is two.
    fn assert_maximal(runs: &[Run]) {
        for pair in runs.windows(2) {
            assert!(pair[0].end < pair[1].first, "{runs:?}");
        }
    }

    #[test]
    fn every_list_of_five_frames_out_of_five_merges_as_a_set_does() {
        // All 5^0 + ... + 5^5 lists, so every order, every repeat and every gap at this size.
        for len in 0..=5u32 {
            for code in 0..5u32.pow(len) {
                let list: Vec<u32> = (0..len).map(|at| code / 5u32.pow(at) % 5).collect();
                let set: BTreeSet<u64> = list.iter().map(|&frame| u64::from(frame)).collect();
                let mut runs = Vec::new();
                let repeats = merge_frames(&mut list.clone(), &mut runs);
                assert_eq!(frames_of(&runs), Vec::from_iter(set.iter().copied()), "{list:?}");
                assert_eq!(repeats, list.len() as u64 - set.len() as u64, "{list:?}");
                assert_maximal(&runs);
            }
        }
    }

    #[test]
    fn every_list_of_three_runs_out_of_six_frames_merges_as_a_set_does() {
        let all: Vec<Run> = (0..6)
            .flat_map(|first| (first + 1..=6).map(move |end| Run { first, end }))
            .collect();
        for a in &all {
            for b in &all {
                for c in &all {
                    let mut runs = vec![*a, *b, *c];
                    let named: u64 = runs.iter().map(|run| run.count()).sum();
                    let set: BTreeSet<u64> = frames_of(&runs).into_iter().collect();
                    let repeats = merge_runs(&mut runs);
                    assert_eq!(frames_of(&runs), Vec::from_iter(set.iter().copied()));
                    assert_eq!(repeats, named - set.len() as u64);
                    assert_maximal(&runs);
                }
            }
        }
    }

    #[test]
    fn the_highest_frame_numbers_do_not_wrap() {
        let mut runs = Vec::new();
        assert_eq!(
            merge_frames(&mut [u32::MAX, 0, u32::MAX, u32::MAX - 1], &mut runs),
            1
        );
        assert_eq!(
            frames_of(&runs),
            [0, u64::from(u32::MAX) - 1, u64::from(u32::MAX)]
        );
        assert_eq!(Run::new(Frame(u64::MAX), 1), None);
        assert_eq!(Run::within(u64::MAX - 8192, u64::MAX), None);
        assert_eq!(Frame(u64::MAX).address(), None);
    }

    #[test]
    fn only_whole_frames_lie_within_a_byte_range() {
        for address in (0..4 * FRAME_SIZE).step_by(1024) {
            for len in (0..4 * FRAME_SIZE).step_by(1024) {
                let oracle: Vec<u64> = (0..8)
                    .filter(|frame| {
                        frame * FRAME_SIZE >= address && (frame + 1) * FRAME_SIZE <= address + len
                    })
                    .collect();
                let runs = Vec::from_iter(Run::within(address, len));
                assert_eq!(frames_of(&runs), oracle, "{len} bytes at {address}");
            }
        }
    }

    #[test]
    fn alignment_goes_inward_for_every_small_run() {
        for unit in [1, 2, 4] {
            for first in 0..9 {
                for end in first + 1..=9 {
                    let inner = Run { first, end }.aligned_inward(unit);
                    let oracle: Vec<u64> = (0..9 / unit)
                        .filter(|block| block * unit >= first && (block + 1) * unit <= end)
                        .flat_map(|block| block * unit..(block + 1) * unit)
                        .collect();
                    assert_eq!(
                        frames_of(&Vec::from_iter(inner)),
                        oracle,
                        "{first}..{end} by {unit}"
                    );
                }
            }
        }
    }
}
