//! How fast a guest's sharing comes apart.

use std::collections::VecDeque;

use crate::Pages;

/// Counts a guest's copy-on-write breaks per window (one rebalancing, 15 s; the same window for all guests) and answers
/// how many may come.
///
/// The model is a token bucket: breaks in any h windows are at most `rate * h + burst`, except with a probability that
/// the burst is chosen for. The burst is a quantile of the bucket's backlog, `b' = max(0, b + breaks - rate)`; since the
/// backlog after h windows is at least what came in them less `rate * h`, a backlog exceeded with probability ε bounds
/// the demand except with probability ε. The quantile is an order statistic: of m windows and one to come, that one
/// exceeds the j-th largest with probability j / (m + 1) at most. So nothing is assumed about the distribution, only
/// that the windows to come are like those seen.
///
/// Any rate gives a bound. Of three (the median of the windows, their 99 % quantile and twice their mean) the one is
/// taken that needs least: a steady guest is best described by its rate, a bursty one by its burst.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BreakMeter {
    windows: VecDeque<u32>,
}

/// Demand of one guest for pages to break its sharing with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakDemand {
    /// Breaks per window that the bucket drains.
    pub rate: Pages,
    /// Backlog beyond the rate, the quantile asked for.
    pub burst: Pages,
    /// Pages that may be needed: never more than are shared.
    pub pages: Pages,
    /// Whether enough windows were seen for the probability asked for. If not, `pages` is all that is shared.
    pub measured: bool,
}

impl BreakMeter {
    /// Windows remembered: at 15 s each a little over four hours.
    pub const WINDOWS: usize = 1024;

    /// Takes in the breaks of one more window.
    pub fn observe(&mut self, breaks: Pages) {
        if self.windows.len() == Self::WINDOWS {
            self.windows.pop_front();
        }
        self.windows
            .push_back(u32::try_from(breaks.get()).unwrap_or(u32::MAX));
    }

    /// Windows seen, at most [`BreakMeter::WINDOWS`].
    #[must_use]
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// What may be needed within `horizon` windows, except with probability `except`, by a guest with `shared` shared
    /// pages.
    #[must_use]
    pub fn demand(&self, shared: Pages, horizon: u32, except: f64) -> BreakDemand {
        // How many windows may exceed the burst; `as` turns a NaN or a negative number into 0.
        let above = (except * (self.windows.len() + 1) as f64) as usize;
        let mut sorted: Vec<u64> = self.windows.iter().map(|&breaks| u64::from(breaks)).collect();
        sorted.sort_unstable();
        let quantile = |part: usize| sorted.get(sorted.len() * part / 100).copied().unwrap_or_default();
        let rates = [quantile(50), quantile(99), (2.0 * self.mean()).ceil() as u64];
        let needs = |rate: u64| {
            let burst = self.backlog(rate, above);
            (
                rate.saturating_mul(u64::from(horizon)).saturating_add(burst),
                rate,
                burst,
            )
        };
        let (needed, rate, burst) = rates.map(needs).into_iter().min().unwrap_or_default();
        let measured = above > 0;
        BreakDemand {
            rate: Pages::new(rate),
            burst: Pages::new(burst),
            pages: if measured {
                Pages::new(needed).min(shared)
            } else {
                shared
            },
            measured,
        }
    }

    /// The `above`-th largest backlog of a bucket that drains `rate` per window; the largest for 0.
    fn backlog(&self, rate: u64, above: usize) -> u64 {
        let mut level = 0;
        let mut levels: Vec<u64> = self
            .windows
            .iter()
            .map(|&breaks| {
                level = (level + u64::from(breaks)).saturating_sub(rate);
                level
            })
            .collect();
        levels.sort_unstable();
        let place = levels.len().saturating_sub(above.max(1));
        levels.get(place).copied().unwrap_or(0)
    }

    /// All of `meters` as one, window by window from the newest back, as far as every one of them reaches. Whether
    /// guests break at the same time is thereby measured, not assumed.
    pub(crate) fn together(meters: &[&Self]) -> Self {
        let common = meters
            .iter()
            .map(|meter| meter.windows.len())
            .min()
            .unwrap_or_default();
        let mut sums = vec![0_u64; common];
        for meter in meters {
            let newest = meter.windows.range(meter.windows.len() - common..);
            for (sum, &breaks) in sums.iter_mut().zip(newest) {
                *sum += u64::from(breaks);
            }
        }
        let mut all = Self::default();
        for breaks in sums {
            all.observe(Pages::new(breaks));
        }
        all
    }

    /// Mean breaks per window.
    pub(crate) fn mean(&self) -> f64 {
        let sum: u64 = self.windows.iter().map(|&breaks| u64::from(breaks)).sum();
        sum as f64 / self.windows.len().max(1) as f64
    }
}
