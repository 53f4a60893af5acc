//! Synthesised pages: bytes that belong to one content number and compress as well as was recorded.

/// Words in a page.
pub(crate) const WORDS: usize = 512;

/// What LZ4 adds to the random bytes of a page made here: tokens, the length of the literals, the match over the rest.
const OVERHEAD: usize = 28;

/// The page of content `number` that LZ4 packs into about `lz4_bytes` bytes: as many random bytes as that takes,
/// then zeros. Different numbers never make equal pages.
pub(crate) fn synthesise(number: u32, lz4_bytes: usize) -> [u64; WORDS] {
    let mut page = [0; WORDS];
    // From 4080 bytes on the record only says "or more": such pages are random throughout.
    let random = if lz4_bytes >= 4080 {
        WORDS
    } else {
        lz4_bytes.saturating_sub(OVERHEAD - 8) / 8
    };
    // Only the first word must tell contents apart: the mixing is a bijection of (number, index).
    for (index, word) in page[..random.max(1)].iter_mut().enumerate() {
        *word = mix(u64::from(number) << 32 | index as u64 | 1 << 63);
    }
    page
}

/// The finalizer of SplitMix64: a bijection of the 64-bit numbers.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_compress_as_recorded() {
        for units in 2..255_usize {
            let bytes: Vec<u8> = synthesise(7, units * 16)
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect();
            let packed = lz4_flex::block::compress(&bytes).len();
            let off = packed.abs_diff(units * 16 + 8);
            assert!(off <= 24, "{units} units: {packed} bytes");
        }
    }

    #[test]
    fn numbers_make_pages() {
        assert_eq!(synthesise(2, 512), synthesise(2, 512));
        assert_ne!(synthesise(2, 16), synthesise(3, 16));
    }
}
