//! What a bench is given and what it gives back.

use std::time::Duration;

use allocator::Pages;

use super::{Figure, Interrupt, PartialResults, Report};
use levy_launcher::GuestArgs;
use levy_manager::policy::Settings;

/// What the user chose for a bench.
#[derive(Clone, Debug)]
pub struct Params {
    /// What guests are made of: images, memory, disks, balloon. A bench clones and changes it for each guest.
    pub guest: GuestArgs,
    /// Fewer repeats and sizes, for a few minutes at most.
    pub quick: bool,
    /// What may be promised as swap.
    pub backing: Pages,
    /// A guest that is not ready within this time hangs.
    pub deadline: Duration,
    /// Whether the user has had enough.
    pub interrupt: Interrupt,
    /// What is left behind if the bench cannot go on: a bench puts in what it has as soon as it has it. A [`Testbed`](super::Testbed)
    /// puts its `samples` in when it ends.
    pub partial: PartialResults,
}

impl Params {
    /// The usual settings of a manager with a budget of `bytes`.
    pub fn settings(&self, bytes: u64) -> Settings {
        Settings::new(Pages::new(bytes / 4096).min(Pages::LIMIT))
    }
}

/// What a bench found.
#[derive(Debug)]
pub struct Outcome {
    /// For programs.
    pub report: Report,
    /// For people: a table and a sentence or two.
    pub table: String,
    /// The same as a picture.
    pub figure: Figure,
}
