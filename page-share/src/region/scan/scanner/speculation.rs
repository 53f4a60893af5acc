//! Speculation: where every sixteenth quiet page equals a pool page, and the distances agree, so do most likely the pages
//! between. Those are claimed and compared without having been sketched, reported and looked up first: their memory
//! is read once instead of twice. A wrong one costs a comparison, and it is not tried with that
//! page again.

use std::sync::Mutex;

use super::{Candidate, Scanner};
use crate::page::{Gfn, Slot};
use crate::port::{Answer, REPORT_BATCH};
use crate::region::engine::{Engine, lock};
use crate::region::scan::look::Scanned;
use crate::region::table::{Marks, State};

/// One quiet page in this many is sketched and reported ahead of the others.
const STEP: usize = 16;

impl Scanner {
    /// Reports a part of the quiet pages, claims pool pages for those between, and takes both out of `scanned.quiet`.
    pub(super) fn speculate(&mut self, engine: &Mutex<Engine>, scanned: &mut Scanned) {
        if scanned.quiet.len() <= STEP || !self.is_connected() {
            return;
        }
        let quiet = std::mem::take(&mut scanned.quiet);
        // Also the last one, so that nothing lies outside.
        let is_ahead = |at: usize| at.is_multiple_of(STEP) || at + 1 == quiet.len();
        let ahead: Vec<Gfn> = (0..quiet.len())
            .filter(|&at| is_ahead(at))
            .map(|at| quiet[at])
            .collect();
        let known = self.candidates.len();
        let reports = std::mem::take(&mut scanned.reports);
        self.sketch(engine, &ahead, scanned);
        let ahead = std::mem::replace(&mut scanned.reports, reports);
        self.report(engine, &ahead);
        let between = self.between(engine, known, &quiet);
        let granted = self.claim(engine, &between);
        let rest = (0..quiet.len()).filter(|&at| !is_ahead(at)).map(|at| quiet[at]);
        scanned.quiet = rest.filter(|page| granted.binary_search(page).is_err()).collect();
    }

    /// Pages between two that were just granted pool pages the same distance apart, and the slots they should equal.
    fn between(&self, engine: &Mutex<Engine>, known: usize, quiet: &[Gfn]) -> Vec<(Gfn, Slot)> {
        let mut engine = lock(engine);
        let (table, pools) = (self.guest.table(), engine.merger().pools());
        let mut between = Vec::new();
        for pair in self.candidates[known..].windows(2) {
            let (first, distance) = (pair[0], distance(pair[0], pair[1]));
            for step in 1..distance {
                let page = first.page.plus(step);
                let may = quiet.binary_search(&page).is_ok()
                    && table.state(page) == State::Private
                    && !table.is_marked(page, Marks::REPORTED | Marks::DIFFERED | Marks::UNSHARABLE);
                if may {
                    between.push((page, pools.slot(first.index.plus(step)).1));
                }
            }
        }
        between
    }

    /// Asks for references and notes the pages that got them; returns those pages, in order.
    fn claim(&mut self, engine: &Mutex<Engine>, between: &[(Gfn, Slot)]) -> Vec<Gfn> {
        let mut granted = Vec::with_capacity(between.len());
        let Some(generation) = self.generation() else {
            return granted;
        };
        let mut answers = Vec::new();
        for pages in between.chunks(REPORT_BATCH) {
            let slots: Vec<Slot> = pages.iter().map(|&(_, slot)| slot).collect();
            let call = self.call(|port| port.claim(generation, &slots, &mut answers));
            if call.is_none() {
                break;
            }
            let mut engine = lock(engine);
            for (&(page, slot), answer) in pages.iter().zip(&answers) {
                if *answer == Answer::Shared(slot) {
                    self.guest.table().set_pending(page, false);
                    self.accept(engine.merger().pools(), page, slot);
                    granted.push(page);
                }
            }
        }
        granted
    }
}

/// How far apart two pages and their pool pages are, if both are and not too far.
fn distance(first: Candidate, last: Candidate) -> u32 {
    let pages = last.page.get().wrapping_sub(first.page.get());
    match last.index.since(first.index) == Some(pages) && pages as usize <= STEP {
        true => pages,
        false => 0,
    }
}
