//! Frame arithmetic against a plain set: merging numbers into runs, and the set of frames in the balloon.

use std::collections::BTreeSet;

use balloon_driver::{Frame, FrameSet, Run, merge_frames, merge_runs};

use crate::{Signature, Target};

pub(crate) const TARGET: Target = Target {
    name: "balloon-frames",
    about: "frame runs and frame sets of the balloon, against a set of numbers",
    longest: 48,
    seeds: || vec![vec![3, 1, 2, 0, 9, 9], (0..48).collect(), (0..48).rev().collect()],
    worker: || Box::new(run),
};

fn run(input: &[u8]) -> Signature {
    let split = input.len() / 2;
    let repeats = merging(&input[..split]);
    let (len, runs) = set(&input[split..]);
    Signature::of([repeats, len, runs])
}

fn numbers(runs: &[Run]) -> Vec<u64> {
    runs.iter()
        .flat_map(|run| run.first().number()..run.end().number())
        .collect()
}

/// Numbers near each other, some near the largest.
fn merging(input: &[u8]) -> u64 {
    let mut frames: Vec<u32> = input
        .iter()
        .map(|&byte| {
            if byte < 200 {
                u32::from(byte)
            } else {
                u32::MAX - u32::from(byte - 200)
            }
        })
        .collect();
    let oracle: BTreeSet<u64> = frames.iter().map(|&frame| u64::from(frame)).collect();
    let mut runs = Vec::new();
    let repeats = merge_frames(&mut frames, &mut runs);
    assert_eq!(numbers(&runs), Vec::from_iter(oracle.iter().copied()));
    assert_eq!(repeats, (input.len() - oracle.len()) as u64);
    let mut again = runs.clone();
    assert_eq!(merge_runs(&mut again), 0);
    assert_eq!(again, runs, "runs are maximal");
    repeats
}

/// Inserts and removes, each of two bytes and a bit, on memory with a hole.
fn set(input: &[u8]) -> (u64, u64) {
    let memory =
        [(5, 130), (160, 96)].map(|(first, count)| Run::new(Frame::new(first), count).expect("not empty"));
    let known: BTreeSet<u64> = numbers(&memory).into_iter().collect();
    let mut set = FrameSet::new(&memory);
    let mut oracle = BTreeSet::new();
    for step in input.chunks_exact(2) {
        let Some(run) = Run::new(Frame::new(u64::from(step[0])), u64::from(step[1] >> 1)) else {
            continue;
        };
        let named: BTreeSet<u64> = numbers(&[run])
            .into_iter()
            .filter(|frame| known.contains(frame))
            .collect();
        let held = named.iter().filter(|&frame| oracle.contains(frame)).count() as u64;
        assert_eq!(set.count(run), held);
        if step[1] & 1 == 0 {
            assert_eq!(set.insert(run), named.len() as u64 - held);
            oracle.extend(named);
        } else {
            assert_eq!(set.remove(run), held);
            oracle.retain(|frame| !named.contains(frame));
        }
        assert_eq!(set.len(), oracle.len() as u64);
    }
    let runs = set.runs();
    assert_eq!(numbers(&runs), Vec::from_iter(oracle));
    (set.len(), runs.len() as u64)
}
