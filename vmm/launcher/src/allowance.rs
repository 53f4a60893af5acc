//! How much is taken from a source that may be hostile: so much at once, and so much a second from then on.

use std::time::Instant;

/// How much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// At once.
    pub(crate) burst: f64,
    /// A second, from then on.
    pub(crate) per_second: f64,
}

/// What is left of it for one source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    rate: Rate,
    left: f64,
    looked: Instant,
    missed: u64,
}

impl Allowance {
    /// All of `rate`, at `now`.
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            left: rate.burst,
            looked: now,
            missed: 0,
        }
    }

    /// Whether something that costs `cost` is taken at `now`; then how many were not taken since the last that was.
    pub(crate) fn take(&mut self, cost: f64, now: Instant) -> Option<u64> {
        let more = now.saturating_duration_since(self.looked).as_secs_f64() * self.rate.per_second;
        self.left = (self.left + more).min(self.rate.burst);
        self.looked = now;
        if self.left < cost {
            self.missed += 1;
            return None;
        }
        self.left -= cost;
        Some(std::mem::take(&mut self.missed))
    }

    /// How many were not taken since the last that was, which is forgotten.
    pub(crate) fn missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_a_burst_and_then_what_a_second_allows_and_the_rest_is_counted() {
        let rate = Rate {
            burst: 10.0,
            per_second: 2.0,
        };
        let began = Instant::now();
        let mut allowance = Allowance::new(rate, began);
        let taken =
            |allowance: &mut Allowance, now| (0..100).filter(|_| allowance.take(1.0, now).is_some()).count();
        assert_eq!(taken(&mut allowance, began), 10);
        assert_eq!(allowance.take(1.0, began + Duration::from_secs(3)), Some(90));
        assert_eq!(taken(&mut allowance, began + Duration::from_secs(3)), 5);
        assert_eq!(allowance.missed(), 95);
        // However long it was silent, and whatever the clock says, it gets no more than a burst.
        assert_eq!(taken(&mut allowance, began + Duration::from_secs(9999)), 10);
        assert_eq!(taken(&mut allowance, began), 0);
        assert_eq!(allowance.take(11.0, began + Duration::from_secs(20_000)), None);
    }
}
