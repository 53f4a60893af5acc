//! The host's four memory states and what each permits.

use crate::Pages;
use crate::action::Action;
use crate::thresholds::Thresholds;

/// How short of memory the host is; later is shorter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Enough is free: nothing is reclaimed.
    #[default]
    High,
    /// Balloons reclaim; other ways only where a balloon cannot.
    Soft,
    /// All ways of reclaiming at once.
    Hard,
    /// As hard, and guests above their target may not grow.
    Low,
}

/// Whether a state permits an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Never.
    No,
    /// For what a guest's balloon cannot take: it is silent, or has no room left.
    BeyondBalloon,
    /// Always.
    Yes,
}

use Permission::{BeyondBalloon, No, Yes};

/// What each state permits: the whole policy in one place. Columns in the order of [`Action::ALL`].
#[rustfmt::skip]
const PERMITS: [[Permission; 6]; 4] = [
    //          balloon  share          compress       swap           block  release
    /* high */ [No,      No,            No,            No,            No,    Yes],
    /* soft */ [Yes,     BeyondBalloon, BeyondBalloon, BeyondBalloon, No,    Yes],
    /* hard */ [Yes,     Yes,           Yes,           Yes,           No,    No],
    /* low  */ [Yes,     Yes,           Yes,           Yes,           Yes,   No],
];

impl State {
    /// All states, from plenty to shortage.
    pub const ALL: [Self; 4] = [Self::High, Self::Soft, Self::Hard, Self::Low];

    /// Whether this state permits `action`.
    #[must_use]
    pub fn permits(self, action: Action) -> Permission {
        PERMITS[self as usize][action as usize]
    }

    /// The name as users write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::Low => "low",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Follows free memory through the states.
///
/// Down at once, to the lowest state whose threshold was crossed; up only when free memory exceeds the upper state's
/// threshold by the hysteresis. Free memory that swings by less than that cannot make the state swing.
///
/// ```
/// use allocator::{Pages, State, StateMachine, Thresholds};
/// let total = Pages::new(100_000);
/// let mut machine = StateMachine::new(Thresholds::published(total));
/// assert_eq!(machine.observe(Pages::new(3_900)), State::Soft); // Below 4 %.
/// assert_eq!(machine.observe(Pages::new(6_100)), State::Soft); // Above 6 %, but not clearly.
/// assert_eq!(machine.observe(Pages::new(6_800)), State::High);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StateMachine {
    thresholds: Thresholds,
    state: State,
}

impl StateMachine {
    /// A machine in [`State::High`].
    #[must_use]
    pub fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            state: State::High,
        }
    }

    /// Takes in how much is free now; returns the state from now on.
    pub fn observe(&mut self, free: Pages) -> State {
        let pressed = self.thresholds.entered(free);
        self.state = if pressed > self.state {
            pressed
        } else {
            self.state.min(self.thresholds.left_for(free))
        };
        self.state
    }

    /// The state as of the last observation.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The thresholds.
    #[must_use]
    pub fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }
}
