//! Signs that the guest has too little memory.

use std::time::Duration;

use super::{Aged, Limits};
use crate::statistics::Values;

/// How a guest hurts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pain {
    /// It killed a process for lack of memory.
    OomKill,
    /// Its available memory is below the floor.
    LowMemory,
    /// It waits for pages of its files that it had to drop.
    MajorFaults,
    /// It waits for pages that it swapped out.
    SwapIn,
}

/// Compares statistics with the ones before.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Watch {
    last: Option<Seen>,
}

/// Statistics that were looked at.
#[derive(Debug, Clone, Copy)]
struct Seen {
    values: Values,
    /// How long ago they arrived.
    age: Duration,
}

impl Watch {
    /// Looks at statistics. The same ones, looked at again, do not hurt twice, except that memory stays low.
    pub(super) fn look(&mut self, now: &Aged<Values>, elapsed: Duration, limits: &Limits) -> Option<Pain> {
        let before = self.last.map(|seen| Seen {
            age: seen.age.saturating_add(elapsed),
            ..seen
        });
        self.last = Some(Seen {
            values: now.value,
            age: now.age,
        });
        let low = now
            .value
            .available_memory
            .is_some_and(|bytes| bytes < limits.available_floor);
        let low = low.then_some(Pain::LowMemory);
        let Some(before) = before else { return low };
        let between = before.age.saturating_sub(now.age);
        if between.is_zero() {
            return low;
        }
        // A count that went back is another boot's, or a lie: it shows nothing.
        let rise = |of: fn(&Values) -> Option<u64>| {
            of(&now.value)?
                .checked_sub(of(&before.values)?)
                .filter(|rise| *rise > 0)
        };
        let above = |rise: Option<u64>, per_second: u64| {
            let allowed = u128::from(per_second) * between.as_millis();
            rise.is_some_and(|rise| u128::from(rise) * 1000 > allowed)
        };
        let signs = [
            (rise(|values| values.oom_kills).is_some(), Pain::OomKill),
            (low.is_some(), Pain::LowMemory),
            (
                above(rise(|values| values.major_faults), limits.major_faults_per_second),
                Pain::MajorFaults,
            ),
            (
                above(rise(|values| values.swap_in), limits.swap_in_per_second),
                Pain::SwapIn,
            ),
        ];
        signs.into_iter().find_map(|(sign, pain)| sign.then_some(pain))
    }
}
