//! Stretches: consecutive pages that are to be merged, each with the pool place that it probably equals.

use crate::page::Gfn;
use crate::region::engine::{BATCH, Engine};
use crate::region::merge::merging::Merged;
use crate::region::run::PageRun;
use crate::region::table::state::mark;

/// Most runs that are merged in one go: each costs a mapping, and a thread that touches a page of the last waits for
/// them all.
const RUNS: u32 = 16;

/// Consecutive pages and their places. A *run* is a stretch whose places are consecutive too: one mapping.
///
/// Each place holds a reference.
#[derive(Debug)]
pub(crate) struct Stretch {
    first: u32,
    /// One for each page, at least one.
    places: Vec<u32>,
}

impl Stretch {
    /// One page.
    pub(crate) fn new(page: u32, place: u32) -> Self {
        Self {
            first: page,
            places: vec![place],
        }
    }

    /// Pages.
    pub(crate) fn count(&self) -> u32 {
        self.places.len() as u32
    }

    fn run(&self) -> PageRun {
        PageRun::new(Gfn::new(self.first), self.count())
    }

    fn end(&self) -> u32 {
        self.first + self.count()
    }

    /// Whether the run goes on with `page` and `place`.
    pub(crate) fn continues(&self, page: u32, place: u32) -> bool {
        self.end() == page && self.places.last().and_then(|last| last.checked_add(1)) == Some(place)
    }

    /// Adds the next page, which has `place`.
    pub(crate) fn push(&mut self, place: u32) {
        self.places.push(place);
    }

    /// Every page and its place.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (self.first..).zip(self.places.iter().copied())
    }

    /// The places.
    pub(crate) fn into_places(self) -> Vec<u32> {
        self.places
    }

    /// Joins runs, in page order, that lie side by side: they are taken in one go, which costs as much as taking one page.
    /// The first stretch comes last.
    pub(crate) fn join(runs: Vec<Self>) -> Vec<Self> {
        let mut stretches: Vec<Self> = Vec::with_capacity(runs.len());
        let mut joined = 0;
        for run in runs {
            joined += 1;
            match stretches.last_mut() {
                Some(last)
                    if last.end() == run.first && joined <= RUNS && last.count() + run.count() <= BATCH =>
                {
                    last.places.extend_from_slice(&run.places);
                }
                _ => {
                    stretches.push(run);
                    joined = 1;
                }
            }
        }
        stretches.reverse();
        stretches
    }

    /// Mappings that merging would add.
    pub(crate) fn cost(&self, engine: &Engine) -> i64 {
        engine.merge_cost(self.run(), &self.places)
    }

    /// Pages won for each two mappings that a run costs: its length where it lies between private pages. A run that
    /// joins a neighbour costs less, one that fills a gap costs nothing.
    pub(crate) fn worth(&self, engine: &Engine) -> u32 {
        match u32::try_from(self.cost(engine)) {
            Ok(cost) if cost > 0 => self.count() * 2 / cost,
            _ => u32::MAX,
        }
    }

    /// Asks for the beginnings of its first page and of that page's pool page: both are compared soon.
    pub(crate) fn prefetch(&self, engine: &Engine) {
        engine.pools.view(self.places[0]).prefetch(0);
        engine
            .guest
            .span(PageRun::of(self.first..self.first + 1))
            .prefetch(0);
    }

    /// Merges it.
    pub(crate) fn merge(self, engine: &mut Engine) -> Merged {
        engine.merge(self.run(), &self.places)
    }

    /// Gives it up for lack of mappings: the references go back, the pages are marked.
    pub(crate) fn leave_out(self, engine: &mut Engine) {
        let guest = &engine.guest;
        guest.counters.merges_without_mapping.add(u64::from(self.count()));
        for page in self.run().numbers() {
            guest.table.add_marks(page, mark::LEFT_OUT);
        }
        engine.returns.extend(self.places);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_side_by_side_are_joined_up_to_the_limits() {
        let run = |first: u32, count: u32| Stretch {
            first,
            places: (1000 - first * 2..).take(count as usize).collect(),
        };
        let joined = Stretch::join(vec![run(0, 2), run(2, 1), run(4, 127), run(131, 1), run(132, 1)]);
        let spans: Vec<(u32, u32)> = joined
            .iter()
            .map(|stretch| (stretch.first, stretch.count()))
            .collect();
        assert_eq!(spans, [(132, 1), (4, 128), (0, 3)]);
        assert_eq!(joined[2].places, [1000, 1001, 996]);
        let singles = Stretch::join((0..40).map(|page| run(page, 1)).collect());
        let counts: Vec<u32> = singles.iter().map(Stretch::count).collect();
        assert_eq!(counts, [8, 16, 16]);
    }
}
