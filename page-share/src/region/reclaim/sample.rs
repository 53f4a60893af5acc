//! Sampling: random private pages are taken away for a while, and the touched ones counted.

use std::sync::Arc;

use crate::page::{Gfn, Page};
use crate::region::error::AdoptError;
use crate::region::guest::{Filled, Guest, system};
use crate::region::kernel::{Arena, Span, Watch};
use crate::region::mover::move_out;
use crate::region::reclaim::Reclaimer;
use crate::region::run::PageRun;
use crate::region::table::{Claim, Location, Marks, Pinned, State};

/// Most pages in one sample.
const SAMPLE_LIMIT: u32 = 1024;

/// What one sampling period showed: of `taken` random private pages, `touched` were used before it ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sample {
    /// Pages taken.
    pub taken: u32,
    /// Of those, pages touched.
    pub touched: u32,
}

/// A place in the sampling area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SamplePlace(u32);

impl Location for SamplePlace {
    fn belongs_to(state: State) -> bool {
        state == State::Sampled
    }

    fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    fn bits(self) -> u32 {
        self.0
    }
}

/// Where sampled pages wait.
pub(crate) struct SampleArea {
    guest: Arc<Guest>,
    arena: Arena,
}

impl SampleArea {
    /// An area for pages of `guest`, watched like it.
    pub(crate) fn new(guest: Arc<Guest>) -> Result<Self, AdoptError> {
        let arena = Arena::reserve(SAMPLE_LIMIT as usize).map_err(system("reserving memory"))?;
        let watched = guest.watch_area(arena.span(), Watch::Missing);
        watched.map_err(system("watching memory"))?;
        Ok(Self { guest, arena })
    }

    fn at(&self, place: SamplePlace) -> Span {
        self.arena.span().sub(place.0 as usize, 1)
    }

    /// Copies a claimed sampled page out.
    pub(crate) fn copy_out(&self, claim: &Claim, bytes: &mut Page) {
        let place = self.guest.table().location(claim, claim.run().first);
        self.at(place).copy_out(0, bytes);
    }

    /// Moves a claimed sampled page back, once, by way of `buffer` where it is locked.
    pub(crate) fn try_give_back(&self, claim: &Claim, buffer: &mut Page) -> Filled {
        let place = self.guest.table().location(claim, claim.run().first);
        self.guest.try_give_back(claim, self.at(place), buffer)
    }

    /// Gives back a page that was taken to `place`. Whether it was still there.
    fn give_back(&self, page: Gfn, place: SamplePlace) -> bool {
        let (guest, table) = (&self.guest, self.guest.table());
        loop {
            match table.state(page) {
                // It was touched, and swapped out, and touched again.
                State::InTransit if table.is_marked(page, Marks::READING) => return false,
                // The handler has it, for a moment, and may have to leave it as it was.
                State::InTransit => {
                    std::thread::yield_now();
                    continue;
                }
                State::Sampled => {}
                _ => return false,
            }
            let Some(claim) = table.claim(page, State::Sampled) else {
                continue;
            };
            if table.location::<SamplePlace>(&claim, page) != place {
                // Touched, and taken once more to another place.
                guest.unclaim(claim);
                return false;
            }
            guest.give_back_all(claim.run(), self.at(place));
            guest.settle(claim, State::Private);
            return true;
        }
    }
}

/// The period under way.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// The pages taken, at the place of their index.
    pages: Vec<Gfn>,
    /// Pages given up by the guest meanwhile; neither touched nor untouched.
    gone: u32,
}

impl Reclaimer {
    /// Ends the running period, if any, and takes up to `n` random private pages for the next.
    pub(crate) fn start_sample(&mut self, n: u32, random: &mut impl FnMut() -> u64) -> u32 {
        self.finish_sample();
        let guest = self.guest.clone();
        let (table, pages) = (guest.table(), u64::from(guest.table().pages()));
        let mut taken = Vec::new();
        // A guest of few private pages must not be searched for ever.
        for _ in 0..u64::from(n.min(SAMPLE_LIMIT)) * 64 {
            if self.sample.pages.len() as u32 >= n.min(SAMPLE_LIMIT) {
                break;
            }
            let page = Gfn::new((random() % pages) as u32);
            if table.state(page) != State::Private || table.is_marked(page, Marks::EXCLUDED | Marks::STUCK) {
                continue;
            }
            let Some(claim) = guest.claim_run(PageRun::one(page), State::Private, Pinned::Leave) else {
                continue;
            };
            let place = SamplePlace(self.sample.pages.len() as u32);
            move_out(&guest, claim, self.area.at(place), &mut taken);
            if let Some(claim) = taken.pop() {
                table.set_location(&claim, page, place);
                self.sample.pages.push(page);
                guest.settle(claim, State::Sampled);
            }
        }
        guest.counters().samples_taken.add(self.sample.pages.len() as u64);
        self.sample.pages.len() as u32
    }

    /// Gives back what was not touched.
    pub(crate) fn finish_sample(&mut self) -> Sample {
        let running = std::mem::take(&mut self.sample);
        let places = (0..).map(SamplePlace);
        let given_back = |(page, place): &(&Gfn, SamplePlace)| self.area.give_back(**page, *place);
        let untouched = running.pages.iter().zip(places).filter(given_back).count() as u32;
        let taken = running.pages.len() as u32 - running.gone;
        Sample {
            taken,
            touched: taken.saturating_sub(untouched),
        }
    }

    /// Sampled pages were given up by their guest: their content goes.
    pub(super) fn drop_sampled(&mut self, claim: &Claim) {
        for page in claim.run().pages() {
            let place = self.guest.table().location(claim, page);
            self.guest.forget_copied(self.area.at(place));
            self.sample.gone += 1;
        }
    }
}
