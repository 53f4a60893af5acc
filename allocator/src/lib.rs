//! Who should hold how much memory, and what to do about it?
//!
//! The policy of a memory manager for virtual machines, after C. Waldspurger, *Memory Resource Management in VMware
//! ESX Server* (OSDI 2002). Values in, a plan out: no clock, no I/O, no randomness, no `unsafe`, no dependencies.
//!
//! | question | nouns |
//! |---|---|
//! | How much should each guest hold, and why? | [`Claim`], [`Group`], [`Tax`] -> [`Fleet`] -> [`Plan`], [`Explanation`] |
//! | How much does it actively use? | [`Sample`], [`Signal`] -> [`Estimator`] -> [`Estimate`]; [`Precision`] |
//! | How short is the host, what may it do? | free [`Pages`] -> [`StateMachine`] -> [`State`], [`State::permits`] |
//! | What happens now, to whom? | [`Fleet`], [`Plan`], [`Situation`] -> [`Ladder`] -> [`Step`]s; [`BalloonWatch`], [`BalloonPace`] |
//! | Does one more guest fit? | [`Reservation`] -> [`Admission`]; [`BreakMeter`] -> [`Overbooking`] |
//! | Was it fair and steady? | [`Portion`]s -> [`FairnessMeter`] -> [`FairnessReport`] |
//!
//! # One round of a manager
//!
//! Two guests of 256 MiB with equal shares compete for 360 MiB. One is idle, one uses all it has. At the default tax an
//! idle page costs four times what an active one costs, and the active guest is full before the idle one loses more:
//!
//! ```
//! use allocator::*;
//! # use std::time::Duration;
//! let supply = Supply { memory: Pages::from_mib(360), tax: Tax::DEFAULT };
//! let max = Pages::from_mib(256);
//! let holding = Holding {
//!     held: Pages::from_mib(180),
//!     balloon: Balloon::Answers { room: Pages::from_mib(160), size: Pages::from_mib(76) },
//!     ..Holding::default()
//! };
//! let claim = |id, active| Claim {
//!     active,
//!     holding,
//!     ..Claim::new(GuestId::new(id), Pages::ZERO, max, Shares::NORMAL)
//! };
//! let fleet = Fleet::new(supply, &[], &[claim(1, Pages::ZERO), claim(2, max)])?;
//! let plan = Plan::compute(&fleet);
//! assert_eq!(plan.targets()[0].pages, Pages::from_mib(104));
//! assert_eq!(plan.targets()[1].pages, Pages::from_mib(256));
//!
//! let why = plan.explain(&fleet, GuestId::new(1)).unwrap().to_string();
//! assert!(why.contains("26624 pages (104.0 MiB) of it are idle and cost 4.00 times that"));
//!
//! let mut steps = Vec::new();
//! let now = Situation {
//!     state: State::Soft,
//!     free: Pages::ZERO,
//!     goal: Pages::from_mib(76),
//!     elapsed: Duration::from_secs(15),
//! };
//! Ladder::default().decide(&fleet, &plan, now, &mut steps);
//! assert_eq!(steps[0], Step { guest: GuestId::new(1), action: Action::Balloon, pages: Pages::from_mib(76) });
//! assert_eq!(steps[1].action, Action::Release);
//! # Ok::<(), FleetError>(())
//! ```
//!
//! # Invariants
//!
//! 1. Targets add up to the memory exactly, or to all maximums where that is less, or to all minimums where these are
//!    more.
//! 2. Every target is between the guest's min and max (both less what it shares, down to none), every group's within its
//!    limits. Limits that were admitted make a fleet, whatever the memory, the activity and the sharing are by now.
//! 3. A plan is what min-funding revocation, one page at a time, arrives at, to the page: pages are taken from the
//!    guest with the fewest shares per (active + k idle) page, the last in the list first among equals.
//! 4. No guest gets less than the closed form's real number rounded down.
//! 5. More shares never shrink their owner. Without groups, removing a guest shrinks no other, and more tax never helps
//!    the guest with the least active memory per share by more than a page.
//! 6. Equal inputs give equal outputs: floating point chooses only where the price search looks, never what it finds.
//! 7. [`Planner::plan`] does not allocate once it has planned for as many guests.
//! 8. What a guest says of itself moves its estimate by at most one standard error of the host's own samples.
//! 9. No page is to be compressed or swapped before sharing was tried on it.
//! 10. A target belongs to a guest's number: a guest that comes or goes after a plan was made gets no other guest's.
//! 11. Nothing is known of a guest before its first sampling period has ended: what it holds counts as active.
//!
//! # Known holes
//!
//! - A guest that touches all its memory once per period is active by definition. It wins back the tax, never more:
//!   `docs/allocator.md` has the amounts.
//! - Rounding favours large claims: with n members a pool's largest may be up to n - 1 pages above its real number, as
//!   everyone else is rounded down.
//! - The break reserve believes that the windows to come are like those seen, and reserves all debt before it has seen
//!   enough.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![forbid(unsafe_code)]

mod action;
mod admission;
mod average;
mod balloon_pace;
mod balloon_watch;
mod break_reserve;
mod breaks;
mod claim;
mod estimator;
mod explanation;
mod fairness;
mod fleet;
mod fleet_error;
mod gains;
mod group;
mod interval;
mod ladder;
mod pages;
mod plan;
mod price;
mod sample_size;
mod shares;
mod signal;
mod state;
mod tax;
mod thresholds;

pub use action::{Action, Step};
pub use admission::{Admission, AdmissionError, Headroom, Refusal, Reservation};
pub use average::Sample;
pub use balloon_pace::BalloonPace;
pub use balloon_watch::BalloonWatch;
pub use break_reserve::{Dependence, Overbooking, OverbookingError};
pub use breaks::{BreakDemand, BreakMeter};
pub use claim::{Balloon, Claim, GuestId, Holding};
pub use estimator::{Estimate, Estimator, SIGNAL_LIFETIME};
pub use explanation::Explanation;
pub use fairness::{FairnessMeter, FairnessReport, Portion, jain};
pub use fleet::{Fleet, Supply};
pub use fleet_error::FleetError;
pub use gains::{Gains, GainsError};
pub use group::{Group, GroupId, Owner};
pub use interval::Interval;
pub use ladder::{Ladder, Rates, Situation};
pub use pages::Pages;
pub use plan::{Bound, GroupTarget, Plan, Planner, Target};
pub use sample_size::Precision;
pub use shares::Shares;
pub use signal::{Evidence, Signal};
pub use state::{Permission, State, StateMachine};
pub use tax::{Tax, TaxError};
pub use thresholds::{Levels, Thresholds, ThresholdsError};

/// The example of the README runs with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
