//! Guest memory of this process, for tests.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use page_share::{AnonymousMemory, Gfn, Region};

use crate::{ManagedMemory, PlainMemory};

pub(crate) const MIB: u64 = 1 << 20;

/// Managed memory with a swap file.
pub(crate) struct TestGuest {
    pub(crate) managed: ManagedMemory,
    ram: AnonymousMemory,
    pages: u32,
    _dir: tempfile::TempDir,
}

impl TestGuest {
    /// `mib` MiB in which no page is like another one, and none compresses.
    pub(crate) fn full(mib: u64) -> Self {
        let pages = (mib * MIB / 4096) as u32;
        let ram = AnonymousMemory::new(pages).unwrap();
        (0..pages).for_each(|page| ram.write_page(page, &content(page)));
        let dir = tempfile::tempdir().unwrap();
        let memory = Arc::new(PlainMemory::new(vec![ram.range(Gfn::new(0))]));
        let managed = ManagedMemory::start(&memory, Some(dir.path().to_owned())).unwrap();
        managed.region().split_blocks(u32::MAX);
        Self {
            managed,
            ram,
            pages,
            _dir: dir,
        }
    }

    pub(crate) fn region(&self) -> &Arc<Region> {
        self.managed.region()
    }

    /// Reads every page.
    pub(crate) fn assert_full(&self) {
        (0..self.pages).for_each(|page| assert!(self.ram.read_page(page) == content(page), "page {page}"));
    }

    /// Bytes of pages in the store and in the swap file.
    pub(crate) fn away(&self) -> u64 {
        let stats = self.region().stats();
        (stats.compressed + stats.swapped) * 4096
    }
}

pub(crate) fn content(page: u32) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    for (word, bytes) in (0..512_u64).zip(bytes.chunks_exact_mut(8)) {
        let number = u64::from(page + 1) << 20 | word;
        bytes.copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    }
    bytes
}

pub(crate) fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        let waited = began.elapsed();
        assert!(waited < Duration::from_secs(300), "{what} did not happen");
        thread::sleep(Duration::from_millis(5));
    }
}
