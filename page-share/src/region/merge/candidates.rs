//! Broken pages, and since when they are quiet.

use std::collections::HashMap;

use crate::hash::Sketch;
use crate::page::Gfn;

/// Passes that a broken page must be quiet before it is re-homed.
const QUIET_PASSES: u8 = 2;

/// How long a broken page has been quiet.
#[derive(Debug, Clone, Copy)]
struct Quiet {
    sketch: Sketch,
    passes: u8,
}

/// Pages that may be re-homed once they are quiet.
#[derive(Debug, Default)]
pub(super) struct RehomeCandidates(HashMap<Gfn, Quiet>);

impl RehomeCandidates {
    /// `page` has the content `sketch` in this pass. Whether it has been quiet for long enough.
    pub(super) fn note(&mut self, page: Gfn, sketch: Sketch) -> bool {
        let quiet = self.0.entry(page).or_insert(Quiet { sketch, passes: 0 });
        if quiet.sketch == sketch {
            quiet.passes = quiet.passes.saturating_add(1);
        } else {
            *quiet = Quiet { sketch, passes: 1 };
        }
        quiet.passes > QUIET_PASSES
    }

    /// `page` is not broken any more.
    pub(super) fn remove(&mut self, page: Gfn) {
        self.0.remove(&page);
    }

    /// All have to be quiet anew: contents are named by another key.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
