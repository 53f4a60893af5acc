//! Dividing a number of pages by weight.

use std::cmp::Ordering;

/// What one gets pages by, and how many of them it can take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Heap {
    pub(super) weight: u64,
    pub(super) room: u64,
}

impl Heap {
    /// Which of two is full first when both get by weight.
    fn sooner(&self, other: &Self) -> Ordering {
        let mine = u128::from(self.room) * u128::from(other.weight);
        mine.cmp(&(u128::from(other.room) * u128::from(self.weight)))
    }
}

/// Deals `pages` to `heaps` by weight; what one has no room for goes to the others. Time grows with n log n.
pub(super) fn deal(heaps: &[Heap], pages: u64) -> Vec<u64> {
    let mut order: Vec<usize> = (0..heaps.len())
        .filter(|&index| heaps[index].weight > 0)
        .collect();
    order.sort_by(|&a, &b| heaps[a].sooner(&heaps[b]));
    let (mut dealt, mut left) = (vec![0; heaps.len()], pages);
    let mut weights: u64 = heaps.iter().map(|heap| heap.weight).sum();
    // Those that are full first come first: what they leave is the others'.
    for index in order {
        let Heap { weight, room } = heaps[index];
        dealt[index] = part(left, weight, weights).min(room);
        left -= dealt[index];
        weights -= weight;
    }
    dealt
}

/// `of` times `numerator` / `denominator`, rounded down.
pub(super) fn part(of: u64, numerator: u64, denominator: u64) -> u64 {
    (u128::from(of) * u128::from(numerator) / u128::from(denominator.max(1))) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_one_cannot_use_goes_to_the_others() {
        let heap = |weight, room| Heap { weight, room };
        assert_eq!(deal(&[heap(1, 5), heap(1, 900)], 105), [5, 100]);
        assert_eq!(deal(&[heap(1, 5), heap(1, 5)], 100), [5, 5]);
        assert_eq!(deal(&[heap(32, 900), heap(1, 900), heap(0, 900)], 66), [64, 2, 0]);
        assert_eq!(deal(&[], 100), [0; 0]);
    }

    proptest! {
        /// All is dealt that there is room for, and no heap with room left has less for its weight than another, but for
        /// rounding.
        #[test]
        fn nothing_is_left_and_weights_hold(
            heaps in prop::collection::vec((0..40_u64, 0..10_000_u64), 0..20),
            pages in 0..100_000_u64,
        ) {
            let heaps: Vec<Heap> = heaps.into_iter().map(|(weight, room)| Heap { weight, room }).collect();
            let dealt = deal(&heaps, pages);
            let room: u64 = heaps.iter().filter(|heap| heap.weight > 0).map(|heap| heap.room).sum();
            prop_assert_eq!(dealt.iter().sum::<u64>(), pages.min(room));
            for (a, x) in heaps.iter().zip(&dealt) {
                prop_assert!(*x <= a.room && (a.weight > 0 || *x == 0));
                for (b, y) in heaps.iter().zip(&dealt).filter(|(b, y)| b.weight > 0 && **y < b.room) {
                    let slack = (a.weight + b.weight) * heaps.len() as u64;
                    prop_assert!(x * b.weight <= y * a.weight + slack, "{heaps:?} {dealt:?}");
                }
            }
        }
    }
}
