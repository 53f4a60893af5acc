//! A block of page-aligned memory that the kernel hands out as it is touched.

use std::fs;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// Page-aligned memory, zero at first.
pub(crate) struct Pages {
    bytes: Vec<u8>,
    start: usize,
    count: usize,
}

impl Pages {
    /// `count` pages of zeros, none of them touched.
    pub(crate) fn new(count: usize) -> Self {
        // One page more than needed, to begin at a page boundary. A vector of zeros this large is a fresh mapping.
        let bytes = vec![0; (count + 1) * PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        Self { bytes, start, count }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn page(&self, index: usize) -> &[u8] {
        assert!(index < self.count, "page {index} of {}", self.count);
        &self.bytes[self.start + index * PAGE..][..PAGE]
    }

    pub(crate) fn page_mut(&mut self, index: usize) -> &mut [u8] {
        assert!(index < self.count, "page {index} of {}", self.count);
        &mut self.bytes[self.start + index * PAGE..][..PAGE]
    }
}

/// Pages in `mib` MiB, if this machine can have them at all.
pub(crate) fn count_of(mib: u64) -> Result<usize, String> {
    let total = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| mem_total_mib(&text));
    if let Some(total) = total.filter(|total| mib >= *total) {
        return Err(format!(
            "{mib} MiB do not fit into the {total} MiB of this machine"
        ));
    }
    usize::try_from(mib << 8).map_err(|error| error.to_string())
}

fn mem_total_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_and_apart() {
        let mut pages = Pages::new(3);
        assert_eq!(pages.page(0).as_ptr().align_offset(PAGE), 0);
        pages.page_mut(1).fill(7);
        assert!(pages.page(0).iter().chain(pages.page(2)).all(|byte| *byte == 0));
        assert_eq!(pages.count(), 3);
    }

    #[test]
    fn more_than_there_is_gets_refused() {
        assert!(count_of(1 << 22).is_err());
        assert_eq!(count_of(1), Ok(256));
    }
}
