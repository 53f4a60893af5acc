//! How much is measured: everything, or just enough to show that all parts work.

use std::time::Duration;

use crate::map::IdentityMap;
use crate::pairs::Plan;

/// Sizes and lengths of one run of the bench.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Pages of each of the four identical guests.
    pub(crate) identical_pages: usize,
    /// Most pages of each guest of the map.
    pub(crate) map_pages: usize,
    /// How often the map is laid out for the default map limit.
    pub(crate) copies: usize,
    /// On/off pairs.
    pub(crate) plan: Plan,
    /// How long the engine runs next to a bystander before the pairs begin.
    pub(crate) settle: Duration,
    /// Repetitions of each single cost.
    pub(crate) repeats: usize,
    /// Whether KSM is watched until its smart scan has learnt.
    pub(crate) ripen: bool,
}

impl Scale {
    /// The sizes that the results in the documentation have.
    pub(crate) const FULL: Self = Self {
        identical_pages: (512 << 20) / ring3::PAGE,
        map_pages: usize::MAX,
        copies: 4,
        plan: Plan {
            pairs: 41,
            half: Duration::from_millis(400),
        },
        settle: Duration::from_secs(60),
        repeats: 4096,
        ripen: true,
    };

    /// A smoke test of a minute: the numbers mean little.
    pub(crate) const QUICK: Self = Self {
        identical_pages: (48 << 20) / ring3::PAGE,
        map_pages: (64 << 20) / ring3::PAGE,
        copies: 2,
        plan: Plan {
            pairs: 15,
            half: Duration::from_millis(150),
        },
        settle: Duration::from_secs(1),
        repeats: 512,
        ripen: false,
    };

    /// The four identical guests.
    pub(crate) fn identical(self) -> IdentityMap {
        IdentityMap::identical(4, self.identical_pages)
    }

    /// The map's guests, cut to size.
    pub(crate) fn cut(self, map: &IdentityMap) -> IdentityMap {
        map.cut(self.map_pages)
    }
}
