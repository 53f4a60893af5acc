//! Fuzzing on the stable toolchain: hostile bytes in, nothing may break.
//!
//! A [`Target`] turns bytes into work for one piece of Levy and checks its invariants; the [`Runner`] makes the bytes.
//! It needs no compiler support: a target says what its input brought about as a [`Signature`], and inputs with a
//! signature not seen before are kept and mutated further.
//!
//! To add a target: one file in `targets`, one line in [`targets::ALL`]. To run one:
//! `cargo run --release -p fuzz -- balloon-ring --runs 1000000`; with `--profile fuzz`
//! instead of `--release` a sum that wraps is a crash, too.
#![forbid(unsafe_code)]

mod mutate;
mod runner;
pub mod targets;

pub use mutate::Dice;
pub use runner::{Outcome, Runner};

/// What an input brought about, as a number: inputs that do different things should differ in it, inputs that do the
/// same thing more often should not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signature(u64);

impl Signature {
    /// The signature of some counts: how many there were counts only by its order of magnitude.
    pub fn of(counts: impl IntoIterator<Item = u64>) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for count in counts {
            let magnitude = u64::from(u64::BITS - count.leading_zeros());
            hash = (hash ^ magnitude).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self(hash)
    }
}

/// One thing to fuzz.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// What is fuzzed, in one line.
    pub about: &'static str,
    /// The longest input worth trying, in bytes.
    pub longest: usize,
    /// Inputs to start from: well-formed ones, so that mutation has something to break.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Sets up one worker. The worker runs one input at a time and panics when an invariant breaks.
    pub worker: fn() -> Worker,
}

/// Runs one input after the other; state that does not influence the next input may stay.
pub type Worker = Box<dyn FnMut(&[u8]) -> Signature>;
