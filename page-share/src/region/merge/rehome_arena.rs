//! The area of re-homes: empty pages, watched from the start and never touched, that are moved into the guest.
//!
//! A page that was ever touched carries history that keeps mappings from joining again; virgin ones do not. Pages are
//! used up from the front, so the area is one shrinking mapping; a new one is reserved when it is used up. Before they are
//! used pages cannot be touched at all: mlockall(2) would fill them.

use rustix::io::Errno;

use crate::region::guest::Guest;
use crate::region::kernel::{Arena, Span, Watch};

/// Pages of address space reserved at a time, 4 GiB. Costs one mapping and no memory.
const AREA_PAGES: usize = 1 << 20;

/// The pages not used yet.
#[derive(Debug)]
pub(super) struct RehomeArena {
    area: Option<Arena>,
    used: usize,
}

impl RehomeArena {
    /// None reserved yet.
    pub(super) fn new() -> Self {
        Self { area: None, used: 0 }
    }

    /// `pages` consecutive virgin pages, watched like `guest`; to be moved away at once.
    pub(super) fn next(&mut self, pages: usize, guest: &Guest) -> Result<Span, Errno> {
        if self.area.is_none() || self.used + pages > AREA_PAGES {
            // The rest of the old area is unmapped with it; what was moved out of it is not there any more, and
            // nothing else can have been mapped into the hole, because the area's owner unmaps exactly what is left.
            self.retire();
            let area = Arena::reserve_closed(AREA_PAGES)?;
            guest.watch_area(area.span(), Watch::MissingAndWrites)?;
            self.area = Some(area);
        }
        let area = self.area.as_ref().ok_or(Errno::NOMEM)?;
        let span = area.span().sub(self.used, pages);
        span.open()?;
        self.used += pages;
        Ok(span)
    }

    fn retire(&mut self) {
        if let Some(area) = self.area.take() {
            area.unmap_from(self.used);
        }
        self.used = 0;
    }
}

impl Drop for RehomeArena {
    fn drop(&mut self) {
        self.retire();
    }
}
