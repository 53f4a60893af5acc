//! The guest agent's binary, built with this library and embedded in it.

/// A static ELF executable for x86-64 Linux.
pub const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/levy-agent"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_static_executable() {
        assert_eq!(&AGENT[..4], b"\x7fELF");
        // Program header type 3 (PT_INTERP) would name a dynamic loader.
        let word = |at: usize, size: usize| {
            AGENT[at..at + size]
                .iter()
                .rev()
                .fold(0usize, |sum, byte| sum << 8 | usize::from(*byte))
        };
        let (start, size, count) = (word(32, 8), word(54, 2), word(56, 2));
        assert!((0..count).all(|index| word(start + index * size, 4) != 3));
    }
}
