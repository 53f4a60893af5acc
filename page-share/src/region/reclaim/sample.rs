//! Sampling: random private pages are taken away for a while, and the touched ones counted.

use crate::region::engine::{Engine, move_out};
use crate::region::guest::shared::Guest;
use crate::region::run::PageRun;
use crate::region::table::state::{Pinned, State, mark};

/// Most pages in one sample.
pub(crate) const SAMPLE_LIMIT: u32 = 1024;

/// What one sampling period showed: of `taken` random private pages, `touched` were used before it ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sample {
    /// Pages taken.
    pub taken: u32,
    /// Of those, pages touched.
    pub touched: u32,
}

/// The period under way.
#[derive(Debug, Default)]
pub(crate) struct Running {
    /// The pages taken, at the place of their index.
    pages: Vec<u32>,
    /// Pages given up by the guest meanwhile; neither touched nor untouched.
    gone: u32,
}

impl Engine {
    /// Ends the running period, if any, and takes up to `n` random private pages for the next.
    pub(crate) fn start_sample(&mut self, n: u32, random: &mut impl FnMut() -> u64) -> u32 {
        self.finish_sample();
        let guest = self.guest.clone();
        let pages = u64::from(guest.table.pages());
        let area = guest.sampling.span();
        let mut taken = Vec::new();
        // A guest of few private pages must not be searched for ever.
        for _ in 0..u64::from(n.min(SAMPLE_LIMIT)) * 64 {
            if self.sample.pages.len() as u32 >= n.min(SAMPLE_LIMIT) {
                break;
            }
            let page = (random() % pages) as u32;
            if guest.table.state(page) != State::Private
                || guest.table.is_marked(page, mark::EXCLUDED | mark::STUCK)
            {
                continue;
            }
            let Some(claim) = guest.claim_run(PageRun::of(page..page + 1), State::Private, Pinned::Leave)
            else {
                continue;
            };
            let place = self.sample.pages.len();
            move_out(&guest, claim, area.sub(place, 1), &mut taken);
            if let Some(claim) = taken.pop() {
                guest.table.set_detail(page, place as u32);
                self.sample.pages.push(page);
                guest.settle(claim, State::Sampled);
            }
        }
        guest.counters.samples_taken.add(self.sample.pages.len() as u64);
        self.sample.pages.len() as u32
    }

    /// Gives back what was not touched.
    pub(crate) fn finish_sample(&mut self) -> Sample {
        let running = std::mem::take(&mut self.sample);
        let guest = self.guest.clone();
        let mut untouched = 0;
        for (place, &page) in running.pages.iter().enumerate() {
            untouched += u32::from(give_back_sampled(&guest, page, place as u32));
        }
        let taken = running.pages.len() as u32 - running.gone;
        Sample {
            taken,
            touched: taken.saturating_sub(untouched),
        }
    }

    /// A sampled page was given up by its guest: its content goes. Only for the page's owner.
    pub(crate) fn sample_drop(&mut self, page: u32) {
        let place = self.guest.table.detail(page) as usize;
        self.guest.forget_copied(self.guest.sampling.span().sub(place, 1));
        self.sample.gone += 1;
    }
}

/// Whether the page was still taken.
fn give_back_sampled(guest: &Guest, page: u32, place: u32) -> bool {
    loop {
        match guest.table.state(page) {
            // It was touched, and swapped out, and touched again.
            State::InTransit if guest.table.is_marked(page, mark::READING) => return false,
            // The handler has it, for a moment, and may have to leave it as it was.
            State::InTransit => {
                std::thread::yield_now();
                continue;
            }
            State::Sampled => {}
            _ => return false,
        }
        let Some(claim) = guest.table.claim(page, State::Sampled) else {
            continue;
        };
        if guest.table.detail(page) != place {
            // Touched, and taken once more to another place.
            guest.settle(claim, State::Sampled);
            return false;
        }
        guest.give_back_all(claim.run(), guest.sampling.span().sub(place as usize, 1));
        guest.settle(claim, State::Private);
        return true;
    }
}
