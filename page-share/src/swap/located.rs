//! Reading pages of a swap file without its lock.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::slots::SwapSlot;
use super::{READ_LIMIT, Sum, SwapError, SwapFile};
use crate::page::Page;

/// A page of the file, to be read without its lock.
#[derive(Debug, Clone)]
pub struct Located {
    pub(super) shared: Arc<SwapFile>,
    pub(super) slot: SwapSlot,
    pub(super) sum: Sum,
}

/// Pages of consecutive slots, to be read in one go without the file's lock.
#[derive(Debug, Clone)]
pub struct LocatedRun {
    pub(super) shared: Arc<SwapFile>,
    pub(super) first: SwapSlot,
    pub(super) sums: [Option<Sum>; READ_LIMIT as usize],
}

impl Located {
    /// Reads the page into `page`, waiting for the disk where needed, and verifies it.
    ///
    /// # Errors
    /// [`SwapError::Corrupt`], [`SwapError::Io`]: the contents of `page` mean nothing then and must not reach a guest.
    pub fn read(&self, page: &mut Page) -> Result<(), SwapError> {
        match self.shared.file.read_exact_at(page, self.slot.offset()) {
            Ok(()) if self.shared.sum(page) == self.sum => Ok(()),
            Ok(()) => Err(SwapError::Corrupt(self.slot)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(SwapError::Corrupt(self.slot)),
            Err(error) => Err(SwapError::Io(error)),
        }
    }
}

impl LocatedRun {
    /// Reads the first of the pages into `pages`, with one read, and verifies each.
    ///
    /// # Errors
    /// As [`Located::read`], for the first page that is not what was written; all of `pages` means nothing then.
    ///
    /// # Panics
    /// When `pages` are more than [`READ_LIMIT`].
    pub fn read(&self, pages: &mut [Page]) -> Result<(), SwapError> {
        match self
            .shared
            .file
            .read_exact_at(pages.as_flattened_mut(), self.first.offset())
        {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(SwapError::Corrupt(self.first));
            }
            Err(error) => return Err(SwapError::Io(error)),
        }
        let sums = &self.sums[..pages.len()];
        let right = |(page, sum): (&Page, &Option<Sum>)| *sum == Some(self.shared.sum(page));
        match pages.iter().zip(sums).position(|both| !right(both)) {
            None => Ok(()),
            Some(at) => Err(SwapError::Corrupt(self.first.after(at as u32))),
        }
    }
}
