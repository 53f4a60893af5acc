//! Contents by number: what pages hold, and what they are called.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use page_share::{PAGE_SIZE, Page, PageHasher, Sketch, Slot};

/// What a page holds. Numbers below [`COMMON`] are what many guests have; each one above only one page ever has.
pub(crate) type Content = u32;

/// Contents that any guest may have.
pub(crate) const COMMON: Content = 12;

/// The pages of contents and their sketches, each made once.
pub(crate) struct Contents {
    hasher: PageHasher,
    made: HashMap<Content, Sketch>,
}

impl Contents {
    pub(crate) fn new(hasher: PageHasher) -> Self {
        Self {
            hasher,
            made: HashMap::new(),
        }
    }

    pub(crate) fn sketch(&mut self, content: Content) -> Sketch {
        let hasher = &self.hasher;
        *self
            .made
            .entry(content)
            .or_insert_with(|| hasher.sketch(&page(content)))
    }
}

pub(crate) fn page(content: Content) -> Page {
    let mut page = [0; PAGE_SIZE];
    page[..4].copy_from_slice(&content.to_le_bytes());
    page[PAGE_SIZE - 4..].copy_from_slice(&content.to_le_bytes());
    page
}

/// The content that `slot` of `pool` has; `None` when it is not one that a guest wrote.
pub(crate) fn read(pool: &File, slot: Slot) -> Option<Content> {
    let mut ends = [[0; 4]; 2];
    pool.read_exact_at(&mut ends[0], slot.offset()).ok()?;
    pool.read_exact_at(&mut ends[1], slot.offset() + PAGE_SIZE as u64 - 4)
        .ok()?;
    // Nothing has number 0: that is what a punched slot holds.
    (ends[0] == ends[1] && ends[0] != [0; 4]).then(|| u32::from_le_bytes(ends[0]))
}
