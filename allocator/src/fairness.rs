//! How fair an allocation was, and how steadily it got there.

use std::time::Duration;

use crate::Pages;

/// What one guest was entitled to (its target) and what it held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Portion {
    /// The plan's target.
    pub entitled: Pages,
    /// What it held.
    pub held: Pages,
}

/// Follows a fleet's portions over time.
#[derive(Clone, Debug)]
pub struct FairnessMeter {
    tolerance: f64,
    tracks: Vec<Track>,
    now: Duration,
    converged_since: Option<Duration>,
}

/// One guest's past.
#[derive(Clone, Copy, Debug, Default)]
struct Track {
    portion: Portion,
    /// The last holding that was a turning point or went beyond it.
    mark: Pages,
    rising: Option<bool>,
    turns: u32,
}

/// How a fleet fared up to the last observation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FairnessReport {
    /// The last portions, in the order of observation.
    pub portions: Vec<Portion>,
    /// Jain's index of held / entitled, (sum r)^2 / (n sum r^2): 1 where every guest got the same part of what it was
    /// entitled to, 1/n where one got all. Guests entitled to nothing are left out; without any it is 1.
    pub jain: f64,
    /// When every guest came within the tolerance of its entitlement for good; none if it is not so.
    pub converged_after: Option<Duration>,
    /// How often each guest's holding changed direction by more than the tolerance.
    pub direction_changes: Vec<u32>,
}

impl FairnessMeter {
    /// A meter for `guests` guests, which counts as converged what is within `tolerance` of the entitlement (as a part
    /// of it), and ignores changes of direction smaller than that.
    #[must_use]
    pub fn new(guests: usize, tolerance: f64) -> Self {
        Self {
            tolerance,
            tracks: vec![Track::default(); guests],
            now: Duration::ZERO,
            converged_since: None,
        }
    }

    /// Takes in every guest's portion, `now` after the start. Guests beyond those the meter was made for are ignored.
    pub fn observe(&mut self, now: Duration, portions: impl IntoIterator<Item = Portion>) {
        self.now = now;
        let mut all_near = true;
        for (track, portion) in self.tracks.iter_mut().zip(portions) {
            let slack = portion.entitled.part(self.tolerance);
            all_near &= portion.entitled.get().abs_diff(portion.held.get()) <= slack.get();
            track.follow(portion, slack);
        }
        self.converged_since = if all_near {
            self.converged_since.or(Some(now))
        } else {
            None
        };
    }

    /// The report up to now.
    #[must_use]
    pub fn report(&self) -> FairnessReport {
        FairnessReport {
            portions: self.tracks.iter().map(|track| track.portion).collect(),
            jain: jain(self.tracks.iter().map(|track| track.portion)),
            converged_after: self.converged_since,
            direction_changes: self.tracks.iter().map(|track| track.turns).collect(),
        }
    }
}

impl Track {
    /// Counts a turn once the holding comes back from its furthest point by more than `slack`.
    fn follow(&mut self, portion: Portion, slack: Pages) {
        self.portion = portion;
        let held = portion.held;
        let Some(rising) = self.rising else {
            if held.get().abs_diff(self.mark.get()) > slack.get() {
                self.rising = Some(held > self.mark);
                self.mark = held;
            }
            return;
        };
        let further = if rising {
            held >= self.mark
        } else {
            held <= self.mark
        };
        if further {
            self.mark = held;
        } else if held.get().abs_diff(self.mark.get()) > slack.get() {
            self.rising = Some(!rising);
            self.mark = held;
            self.turns += 1;
        }
    }
}

/// Jain's fairness index of held / entitled.
#[must_use]
pub fn jain(portions: impl IntoIterator<Item = Portion>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for portion in portions {
        if portion.entitled > Pages::ZERO {
            let ratio = portion.held.of(portion.entitled);
            count += 1.0;
            sum += ratio;
            squares += ratio * ratio;
        }
    }
    if squares > 0.0 {
        sum * sum / (count * squares)
    } else {
        1.0
    }
}
