//! What the kernel says of this process's memory.
#![allow(dead_code, reason = "each test uses a part of it")]

/// Sums over some of this process's mappings, bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Smaps {
    pub(crate) mappings: u64,
    pub(crate) rss: u64,
    pub(crate) pss: u64,
    pub(crate) anonymous: u64,
}

/// /proc/self/smaps, of the mappings whose addresses are inside `range`.
pub(crate) fn smaps(range: std::ops::Range<usize>) -> Smaps {
    let mut sums = Smaps::default();
    let mut inside = false;
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let (key, rest) = line.split_once(' ').unwrap();
        if let Some((start, _)) = key.split_once('-') {
            inside = range.contains(&usize::from_str_radix(start, 16).unwrap());
            sums.mappings += u64::from(inside);
            continue;
        }
        let value = || rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
        match key {
            "Rss:" if inside => sums.rss += value(),
            "Pss:" if inside => sums.pss += value(),
            "Anonymous:" if inside => sums.anonymous += value(),
            _ => {}
        }
    }
    sums
}
