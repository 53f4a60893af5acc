//! What each page must hold.
//!
//! An eighth of the pages is zeros, a half is in sixteen copies in each guest of the same seed, the rest differs from page to
//! page, in a word or two that may be anywhere. Half of what is not zeros compresses well. Any word may be written to, and
//! the writers remember what they wrote.

use std::sync::atomic::Ordering;

use levy_machine::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use crate::contents::{self, Written};

pub(crate) const PAGE: u64 = 4096;

/// Words of 64 bits in a page.
pub(crate) const WORDS: u64 = PAGE / 8;

/// The pages of one guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pages {
    pub(crate) count: u64,
    pub(crate) seed: u64,
    pub(crate) all_different: bool,
}

impl Pages {
    /// The word at `index` of a page that is as it was in the beginning.
    pub(crate) fn fixed(self, page: u64, index: u64) -> u64 {
        if page.is_multiple_of(8) && !self.all_different {
            return 0;
        }
        let content = match page % 8 {
            1..=4 if !self.all_different => (self.seed << 32) | (page / 32),
            _ => (self.seed << 32) | (1 << 31) | page,
        };
        match content / 2 % 2 {
            0 => contents::word(content, index as usize),
            _ => contents::noise(content, index as usize),
        }
    }

    /// A page as it is in the beginning.
    pub(crate) fn bytes(self, page: u64) -> Vec<u8> {
        let words = (0..WORDS).flat_map(|index| self.fixed(page, index).to_le_bytes());
        words.collect()
    }

    /// Writes all pages as they are in the beginning.
    pub(crate) fn fill(self, ram: &GuestRam) {
        for page in 0..self.count {
            ram.view()
                .write_slice(&self.bytes(page), GuestAddress(page * PAGE))
                .expect("a page of the guest");
        }
    }

    /// Words of `page` that are not as they must be after what was `written` to it.
    pub(crate) fn wrong(self, ram: &GuestRam, page: u64, written: &Written) -> u64 {
        let mut bytes = [0; PAGE as usize];
        ram.view()
            .read_slice(&mut bytes, GuestAddress(page * PAGE))
            .expect("a page of the guest");
        let words = bytes.chunks_exact(8).zip(0..);
        let wrong = words.filter(|(bytes, index)| {
            let expected = written.expected(*index as usize, self.fixed(page, *index));
            **bytes != expected.to_le_bytes()
        });
        wrong.count() as u64
    }
}

/// One word, read at once.
pub(crate) fn load(ram: &GuestRam, page: u64, index: u64) -> u64 {
    let at = GuestAddress(page * PAGE + index * 8);
    ram.view()
        .load(at, Ordering::SeqCst)
        .expect("a page of the guest")
}

/// One word, written at once.
pub(crate) fn store(ram: &GuestRam, page: u64, index: u64, value: u64) {
    let at = GuestAddress(page * PAGE + index * 8);
    ram.view()
        .store(value, at, Ordering::SeqCst)
        .expect("a page of the guest");
}
