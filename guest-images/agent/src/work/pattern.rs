//! Bytes that any holder of the same key can make again: what is lost or invented shows at the byte.

/// Weyl constant of splitmix64.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// splitmix64's output function.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// One key out of a seed and two numbers, as of a page and its version.
pub(crate) fn key(seed: u64, number: u64, version: u64) -> u64 {
    mix(mix(mix(seed.wrapping_add(STEP)) ^ number).wrapping_add(STEP) ^ version)
}

/// A pseudo-random sequence.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(key(seed, 0, 0))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number below `limit`, which is not 0. The bias is far below what a workload notices.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}

/// Fills `bytes` with the pattern of `key`.
pub(crate) fn fill(bytes: &mut [u8], key: u64) {
    let mut state = key;
    for chunk in bytes.chunks_mut(8) {
        state = state.wrapping_add(STEP);
        chunk.copy_from_slice(&mix(state).to_le_bytes()[..chunk.len()]);
    }
}

/// The word at 8 * `index` in the pattern of `key`.
pub(crate) fn word(key: u64, index: u64) -> [u8; 8] {
    mix(key.wrapping_add(STEP.wrapping_mul(index + 1))).to_le_bytes()
}

/// Says where `bytes` differ from the pattern of `key`.
pub(crate) fn check(bytes: &[u8], key: u64) -> Result<(), String> {
    let mut state = key;
    for (index, chunk) in bytes.chunks(8).enumerate() {
        state = state.wrapping_add(STEP);
        let expected = &mix(state).to_le_bytes()[..chunk.len()];
        if chunk != expected {
            return Err(format!(
                "byte {}: {chunk:02x?} instead of {expected:02x?}",
                index * 8
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_byte_is_found() {
        let mut bytes = vec![0; 4099];
        fill(&mut bytes, 7);
        assert_eq!(check(&bytes, 7), Ok(()));
        assert!(check(&bytes, 8).is_err());
        for at in [0, 5, 2048, 4098] {
            bytes[at] ^= 1;
            let error = check(&bytes, 7).unwrap_err();
            assert!(error.contains(&format!("byte {}:", at / 8 * 8)), "{error}");
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn a_word_can_be_had_alone() {
        let mut bytes = vec![0; 4096];
        fill(&mut bytes, 7);
        assert!((0..512).all(|index| word(7, index) == bytes[index as usize * 8..][..8]));
    }

    #[test]
    fn keys_differ_in_every_part() {
        let keys = [
            key(1, 2, 3),
            key(2, 2, 3),
            key(1, 3, 3),
            key(1, 2, 4),
            key(1, 3, 2),
        ];
        for (index, one) in keys.iter().enumerate() {
            assert!(!keys[index + 1..].contains(one));
        }
    }

    #[test]
    fn below_stays_below() {
        let mut random = Random::new(1);
        let seen: Vec<_> = (0..1000).map(|_| random.below(10)).collect();
        assert!((0..10).all(|number| seen.contains(&number)) && seen.iter().all(|number| *number < 10));
    }
}
