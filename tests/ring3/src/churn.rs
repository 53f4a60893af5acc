//! What [`crate::Program::Churn`] leaves in a page: its states as the host sees them.

use crate::PAGE;

/// What the words of a page are multiples of.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The words of a page in `state`; the comment at the program says the same.
pub(crate) fn words(state: u32) -> [u64; PAGE / 8] {
    let sixteenth = u64::from(state >> 4);
    let first = sixteenth.wrapping_mul(STEP);
    let growth = if sixteenth.is_multiple_of(2) { first } else { 0 };
    let mut words = std::array::from_fn(|index| first.wrapping_add(growth.wrapping_mul(index as u64)));
    words[sixteenth as usize * 33] = u64::from(state);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_different_states_differ() {
        assert_eq!(words(0), [0; PAGE / 8]);
        let pages: std::collections::BTreeSet<_> = (0..256).map(words).collect();
        assert_eq!(pages.len(), 256);
    }
}
