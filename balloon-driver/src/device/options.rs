//! What the device offers its driver.

use crate::features::{
    DEFLATE_ON_OOM, EVENT_IDX, FREE_PAGE_HINT, INDIRECT_DESC, PAGE_POISON, REPORTING, STATISTICS, VERSION_1,
};

/// Whether the device offers a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Offer {
    /// It does.
    On,
    /// It does not.
    Off,
}

/// What the device offers its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The guest may take pages back before it kills a process. Without it an over-inflated guest panics.
    pub deflate_on_oom: Offer,
    /// The guest sends memory statistics.
    pub statistics: Offer,
    /// The guest reports free pages without being asked.
    pub free_page_reporting: Offer,
    /// The guest lists free pages on request, for migration.
    pub free_page_hinting: Offer,
    /// The guest says what it fills free pages with. A guest that poisons its pages needs this to report them.
    pub page_poison: Offer,
}

impl Default for Options {
    /// Everything but hinting, which only a migration needs.
    fn default() -> Self {
        Self {
            deflate_on_oom: Offer::On,
            statistics: Offer::On,
            free_page_reporting: Offer::On,
            free_page_hinting: Offer::Off,
            page_poison: Offer::On,
        }
    }
}

impl Options {
    /// The feature bits that these options offer, transport bits included.
    pub fn features(&self) -> u64 {
        let offered = [
            (self.statistics, STATISTICS),
            (self.deflate_on_oom, DEFLATE_ON_OOM),
            (self.free_page_hinting, FREE_PAGE_HINT),
            (self.page_poison, PAGE_POISON),
            (self.free_page_reporting, REPORTING),
        ];
        offered
            .into_iter()
            .filter(|(offer, _)| *offer == Offer::On)
            .fold(VERSION_1 | EVENT_IDX | INDIRECT_DESC, |features, (_, bit)| {
                features | bit
            })
    }
}
