//! A sample that a seed decides.

use super::program::Mutant;

/// The first `size` of `mutants` in the order of `seed`. A larger sample begins with the smaller one.
pub(super) fn draw(mut mutants: Vec<&Mutant>, seed: u64, size: usize) -> Vec<&Mutant> {
    let mut state = seed;
    for at in 0..mutants.len().min(size) {
        let left = (mutants.len() - at) as u64;
        mutants.swap(at, at + (next(&mut state) % left) as usize);
    }
    mutants.truncate(size);
    mutants
}

/// SplitMix64: short, and its low bits are as good as the rest.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::point::{Kind, Point};

    fn mutants() -> Vec<Mutant> {
        let point = Point {
            kind: Kind::Some,
            line: 1,
            original: String::new(),
            mutated: String::new(),
            edits: Vec::new(),
        };
        let mutant = |number| Mutant {
            number,
            package: "p",
            file: "f".into(),
            point: point.clone(),
        };
        (0..100).map(mutant).collect()
    }

    fn drawn(seed: u64, size: usize) -> Vec<u32> {
        let mutants = mutants();
        draw(mutants.iter().collect(), seed, size)
            .iter()
            .map(|mutant| mutant.number)
            .collect()
    }

    #[test]
    fn a_seed_decides_and_a_larger_sample_begins_with_the_smaller_one() {
        assert_eq!(drawn(7, 30), drawn(7, 90)[..30]);
        assert_ne!(drawn(7, 30), drawn(8, 30));
        let mut all = drawn(7, 1000);
        all.sort_unstable();
        assert_eq!(all, Vec::from_iter(0..100));
    }
}
