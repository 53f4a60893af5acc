//! Repeated measurements of one quantity.

use serde::Serialize;

/// Measurements of one quantity, in whatever unit the bench names in its key.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

/// A median with the interval that holds it with at least 95 % confidence (order statistics, no distribution
/// assumed).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Median {
    /// The middle value.
    pub median: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Samples {
    /// Adds one measurement.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many measurements there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value below which `part` (0 to 1) of the measurements lie; `NaN` without measurements.
    pub fn quantile(&self, part: f64) -> f64 {
        let sorted = self.sorted();
        match sorted.len() {
            0 => f64::NAN,
            n => sorted[((n - 1) as f64 * part).round() as usize],
        }
    }

    /// The median and its 95 % confidence interval; all `NaN` without measurements.
    ///
    /// The interval's ends are the order statistics of rank `n/2 -+ 0.98 sqrt(n)` (normal approximation of the
    /// binomial), clamped to the extremes.
    pub fn median(&self) -> Median {
        let sorted = self.sorted();
        let n = sorted.len();
        if n == 0 {
            return Median {
                median: f64::NAN,
                low: f64::NAN,
                high: f64::NAN,
            };
        }
        let middle = if n % 2 == 1 {
            sorted[n / 2]
        } else {
            (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0
        };
        let reach = 0.98 * (n as f64).sqrt();
        let low = (n as f64 / 2.0 - reach).floor().max(0.0) as usize;
        let high = ((n as f64 / 2.0 + reach).ceil() as usize).min(n - 1);
        Median {
            median: middle,
            low: sorted[low],
            high: sorted[high],
        }
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_fifteen_has_the_textbook_interval() {
        let samples: Samples = (1..=15).map(f64::from).collect();
        // Ranks 4 and 13 of 15 hold the median with more than 95 % confidence.
        assert_eq!(
            samples.median(),
            Median {
                median: 8.0,
                low: 4.0,
                high: 13.0
            }
        );
    }

    #[test]
    fn quantiles_reach_both_ends() {
        let samples: Samples = [3.0, 1.0, 2.0].into_iter().collect();
        assert_eq!(
            (
                samples.quantile(0.0),
                samples.quantile(0.5),
                samples.quantile(1.0)
            ),
            (1.0, 2.0, 3.0)
        );
    }
}
