//! Memory kept free for sharing to come apart.

use std::fmt;

use crate::Pages;
use crate::breaks::BreakMeter;

/// Whether guests may break their sharing at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dependence {
    /// They may, for a common cause (an update, a cron job). The fleet's breaks are counted together, so that what they
    /// have in common is measured.
    #[default]
    Unknown,
    /// They do so independently of each other, by the caller's word. Many guests then need less (Hoeffding's bound,
    /// taken where it is the smaller one).
    Independent,
}

/// How the reserve is chosen: overbooking as Urgaonkar, Shenoy and Roscoe do it (OSDI 2002).
///
/// Every shared page is a debt: a write to it needs a page at once, and the kernel takes it without asking. Reserving
/// all debt would undo the sharing. The reserve covers what may break until the next plan can react, except with the
/// tolerated probability. That much must have been seen to be said: guests with fewer than 1/p - 1 windows (99 for
/// 1 %) are reserved all their debt, and below a probability of 1/1025 so are all others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overbooking {
    tolerated: f64,
    horizon: u32,
    dependence: Dependence,
}

impl Overbooking {
    /// Run short with a probability of at most `tolerated` within `horizon` windows.
    ///
    /// # Errors
    /// When `tolerated` is not a number from 0 to below 1. 0 reserves all debt.
    pub fn new(tolerated: f64, horizon: u32, dependence: Dependence) -> Result<Self, OverbookingError> {
        if !(0.0..1.0).contains(&tolerated) {
            return Err(OverbookingError { tolerated });
        }
        Ok(Self {
            tolerated,
            horizon,
            dependence,
        })
    }

    /// The pages to keep free for `guests`, each given by its meter and its number of shared pages.
    #[must_use]
    pub fn reserve(&self, guests: &[(&BreakMeter, Pages)]) -> Pages {
        let enough = (1.0 / self.tolerated - 1.0).ceil() as usize;
        let (known, new): (Vec<_>, Vec<_>) = guests.iter().partition(|(meter, _)| meter.windows() >= enough);
        let meters: Vec<&BreakMeter> = known.iter().map(|(meter, _)| *meter).collect();
        let shared: Pages = known.iter().map(|(_, shared)| *shared).sum();
        let debt: Pages = new.iter().map(|(_, shared)| *shared).sum();
        let together = BreakMeter::together(&meters).demand(shared, self.horizon, self.tolerated);
        match self.dependence {
            Dependence::Unknown => debt + together.pages,
            Dependence::Independent => (debt + together.pages).min(self.hoeffding(guests)),
        }
    }

    /// Sum of means + sqrt(ln(1/p)/2 * sum of squares of what each can need at most), as each is between 0 and its
    /// debt. A guest not yet measured counts with its debt as mean.
    fn hoeffding(&self, guests: &[(&BreakMeter, Pages)]) -> Pages {
        let mut mean = 0.0;
        let mut squares = 0.0;
        for (meter, shared) in guests {
            let debt = shared.get() as f64;
            if meter.windows() == 0 {
                mean += debt;
            } else {
                mean += (meter.mean() * f64::from(self.horizon)).min(debt);
                squares += debt * debt;
            }
        }
        Pages::new((mean + (-self.tolerated.ln() / 2.0 * squares).sqrt()).ceil() as u64)
    }
}

impl Default for Overbooking {
    /// 1 % per horizon of two windows: one until the next plan, one until it took effect.
    fn default() -> Self {
        Self {
            tolerated: 0.01,
            horizon: 2,
            dependence: Dependence::Unknown,
        }
    }
}

/// A probability that is none, or certainty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OverbookingError {
    /// What was asked for.
    pub tolerated: f64,
}

impl fmt::Display for OverbookingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a tolerated probability of {} is not from 0 to below 1; 0 reserves every shared page",
            self.tolerated
        )
    }
}

impl std::error::Error for OverbookingError {}
