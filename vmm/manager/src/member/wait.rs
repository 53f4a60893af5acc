//! How long has a guest waited for memory and got none?

use std::time::Duration;

use allocator::Pages;

use levy_protocol::link::Report;

/// A guest that waits for memory and gets none for this long stands still.
const STANDSTILL: Duration = Duration::from_secs(3);

/// A process that has come to hold this much more has got memory, whatever its reports say. An engine that stands still
/// needs less.
const GROWN: Pages = Pages::from_mib(1);

/// What changes when an access gets memory: pages that came back, pages that were parted, pages without memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Got(u64, u64, u64);

impl Got {
    fn of(report: &Report) -> Self {
        let empty = report.pages.empty.saturating_add(report.pages.ballooned);
        Self(report.pages_in, report.cow_breaks, empty)
    }
}

/// How long a guest has waited for memory while no access got any.
#[derive(Debug, Clone, Default)]
pub(super) struct Wait {
    waited: Duration,
    /// What its reports counted when that began.
    got: Got,
    /// What it held when that began, by the kernel's count.
    held: Pages,
}

impl Wait {
    /// Lets `elapsed` pass, at the end of which a process that waits or does not holds `held`.
    pub(super) fn pass(&mut self, waits: bool, report: &Report, held: Pages, elapsed: Duration) {
        let got = Got::of(report);
        if waits && got == self.got && held <= self.held + GROWN {
            self.waited = self.waited.saturating_add(elapsed);
        } else {
            *self = Self {
                waited: Duration::ZERO,
                got,
                held,
            };
        }
    }

    /// How long it has waited.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }

    /// Whether that is long enough, where its last report is of `age`: what has happened since then is not known.
    pub(super) fn is_standstill(&self, age: Duration) -> bool {
        self.waited.saturating_sub(age) >= STANDSTILL
    }
}
