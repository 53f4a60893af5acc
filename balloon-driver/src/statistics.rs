//! Memory statistics as the guest sends them: ten bytes each, a tag and a value.

use std::time::{Duration, Instant};

/// Bytes of one statistic on the wire: a 16-bit tag and a 64-bit value, packed, little endian.
pub const STATISTIC_SIZE: usize = 10;

macro_rules! statistics {
    ($($(#[doc = $doc:literal])+ $tag:literal $name:ident),+ $(,)?) => {
        /// The guest's memory statistics, as far as it sent them. All of them are claims of the guest.
        ///
        /// Counts run since the guest's boot. What each number means is said for Linux, whose driver sent the first
        /// ten up to 6.11 and sends all of them since 6.12, amounts of memory in bytes.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Values {
            $($(#[doc = $doc])+ pub $name: Option<u64>,)+
        }

        impl Values {
            /// How many tags are known: 0 up to, not including, this number.
            pub const TAGS: u16 = [$($tag),+].len() as u16;

            /// Takes one statistic. `false` when `tag` is unknown.
            pub(crate) fn set(&mut self, tag: u16, value: u64) -> bool {
                match tag {
                    $($tag => self.$name = Some(value),)+
                    _ => return false,
                }
                true
            }

            /// Each statistic that was sent: its tag, its name, its value.
            pub fn iter(&self) -> impl Iterator<Item = (u16, &'static str, u64)> + use<> {
                [$(($tag, stringify!($name), self.$name)),+]
                    .into_iter()
                    .filter_map(|(tag, name, value)| Some((tag, name, value?)))
            }
        }
    };
}

statistics! {
    /// Bytes swapped in since boot.
    0 swap_in,
    /// Bytes swapped out since boot.
    1 swap_out,
    /// Page faults that needed I/O, since boot.
    2 major_faults,
    /// Page faults since boot. The specification means those without I/O; Linux sends all of them, major faults
    /// included.
    3 minor_faults,
    /// Bytes in no use at all.
    4 free_memory,
    /// Bytes that the guest manages. Linux subtracts the balloon unless deflate-on-OOM was negotiated, so that the
    /// same guest has another total under another option: never derive a need from it.
    5 total_memory,
    /// Bytes that can be had without swapping, by the guest's estimate.
    6 available_memory,
    /// Bytes of the page cache. Linux counts tmpfs and shared memory, too, which cannot be dropped.
    7 disk_caches,
    /// Huge pages allocated since boot: a count of pages.
    8 hugetlb_allocations,
    /// Huge page allocations that failed, since boot.
    9 hugetlb_failures,
    /// Processes killed for lack of memory, since boot.
    10 oom_kills,
    /// Allocations that had to reclaim memory themselves, since boot.
    11 allocation_stalls,
    /// Bytes that kswapd scanned since boot.
    12 async_scans,
    /// Bytes that allocating processes scanned since boot.
    13 direct_scans,
    /// Bytes that kswapd reclaimed since boot.
    14 async_reclaims,
    /// Bytes that allocating processes reclaimed since boot.
    15 direct_reclaims,
}

/// The last statistics the guest sent, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// What it sent.
    pub values: Values,
    /// When it arrived.
    pub received: Instant,
}

impl Statistics {
    /// How old the numbers are at `now`.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.received)
    }
}

/// Reads a buffer of statistics. Returns them and how many had an unknown tag. A later value of the same tag wins;
/// a torso at the end is ignored.
pub(crate) fn parse(bytes: &[u8]) -> (Values, u64) {
    let mut values = Values::default();
    let mut unknown = 0;
    for entry in bytes.chunks_exact(STATISTIC_SIZE) {
        let (tag, value) = entry.split_at(2);
        let tag = u16::from_le_bytes([tag[0], tag[1]]);
        let value = value
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte));
        unknown += u64::from(!values.set(tag, value));
    }
    (values, unknown)
}

/// Writes statistics as a guest does.
pub fn encode(statistics: &[(u16, u64)]) -> Vec<u8> {
    let entry = |&(tag, value): &(u16, u64)| tag.to_le_bytes().into_iter().chain(value.to_le_bytes());
    statistics.iter().flat_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_parsed_and_unknown_tags_are_counted() {
        let sent: Vec<(u16, u64)> = (0..Values::TAGS + 3)
            .chain([u16::MAX])
            .map(|tag| (tag, u64::from(tag) << 40 | 1))
            .collect();
        let (values, unknown) = parse(&encode(&sent));
        assert_eq!(unknown, 4);
        let seen: Vec<(u16, u64)> = values.iter().map(|(tag, _, value)| (tag, value)).collect();
        assert_eq!(seen, sent[..usize::from(Values::TAGS)]);
    }

    #[test]
    fn every_length_is_taken() {
        let bytes = encode(&[(4, 7), (4, 9), (6, 11)]);
        for len in 0..=bytes.len() {
            let (values, unknown) = parse(&bytes[..len]);
            let whole = len / STATISTIC_SIZE;
            assert_eq!(values.free_memory, [None, Some(7), Some(9), Some(9)][whole]);
            assert_eq!((values.available_memory.is_some(), unknown), (whole == 3, 0));
        }
    }
}
