//! What is done about one fault, by what its page is.

use std::sync::mpsc::TrySendError;

use rustix::io::Errno;

use super::{Fault, Outcome, WAITING_GROUPS, Worker};
use crate::page::{Gfn, PAGE_SIZE};
use crate::region::error::fatal;
use crate::region::faults::swap_thread::SwapIn;
use crate::region::guest::{Admission, Filled, Guest};
use crate::region::reclaim::NEIGHBOURS;
use crate::region::run::PageRun;
use crate::region::table::{Claim, Marks, Pinned, State};

/// Pages filled at one fault on an empty page: enough to make first touches cheap, few enough to be quick.
const FILL_PAGES: u32 = 64;

impl Worker {
    pub(super) fn resolve(&mut self, guest: &Guest, fault: Fault) -> Outcome {
        let Fault { page, protected } = fault;
        let run = PageRun::one(page);
        let state = guest.table().state(page);
        match state {
            // The owner wakes the waiter when it settles the page.
            State::InTransit => {
                guest.counters().faults_waited.add(1);
                return Outcome::Done;
            }
            State::Shared | State::Broken if protected => {
                return self.grow(guest, |worker| worker.let_break(guest, page, state));
            }
            State::Empty | State::Ballooned => {
                return self.grow(guest, |worker| worker.fill(guest, page, state));
            }
            State::Private | State::Zero | State::Huge if !protected => {
                return self.refill(guest, page, state);
            }
            State::Sampled => return self.touch_sampled(guest, page),
            // What comes back from storage grows too: it was given up so that others could have the memory.
            State::Compressed => return self.grow(guest, |worker| worker.decompress(guest, page)),
            State::Swapped => return self.grow(guest, |worker| worker.swap_in(guest, page)),
            State::Lost => drop(guest.try_poison(run)),
            // A fault from before the page got its content, or nothing of ours.
            State::Private | State::Zero | State::Shared | State::Broken | State::Hole | State::Huge => {}
        }
        guest.wake(run);
        Outcome::Done
    }

    /// Does what needs a page of memory if there is credit for one. Credit that could not be used yet is not lost.
    fn grow(&mut self, guest: &Guest, action: impl FnOnce(&mut Self) -> Outcome) -> Outcome {
        let admission = guest.gate().admit_one();
        if admission == Admission::Refused {
            guest.counters().faults_gated.add(1);
            return Outcome::Gated;
        }
        let outcome = action(self);
        if outcome == Outcome::Later && admission == Admission::Paid {
            guest.gate().refund();
        }
        outcome
    }

    /// A write to a pool page waits at its protection: for credit, or because the gate has just opened.
    fn let_break(&self, guest: &Guest, page: Gfn, state: State) -> Outcome {
        // Claimed, so that no re-home is between its protection and its copy.
        let Some(claim) = guest.table().claim(page, state) else {
            return Outcome::Later;
        };
        if let Err(error) = guest.unprotect_pool(claim.run())
            && error == Errno::AGAIN
        {
            guest.settle(claim, state);
            return Outcome::Later;
        }
        guest.settle(claim, state);
        Outcome::Done
    }

    /// An empty page is touched: zeros, for its empty neighbours too.
    fn fill(&self, guest: &Guest, page: Gfn, state: State) -> Outcome {
        if guest.gate().is_closed() {
            return self.fill_with_memory(guest, page, state);
        }
        let Some(mut claim) = self.claim_to_fill(guest, page, state) else {
            return Outcome::Later;
        };
        if guest.gate().is_closed() {
            // Closed meanwhile: the thread that did it waits for what is claimed, or looks later and finds zeros to
            // drop.
            guest.settle(claim, state);
            return Outcome::Later;
        }
        let mut progress = guest.try_zero(claim.run());
        if claim.run().count > 1 && matches!(progress.stopped, Some(Errno::NOENT | Errno::INVAL)) {
            // The neighbours are in another mapping, which one call cannot span.
            guest.settle(claim, state);
            let Some(alone) = guest.table().claim(page, state) else {
                return Outcome::Later;
            };
            claim = alone;
            progress = guest.try_zero(claim.run());
        }
        let pages = claim.run().count;
        let (filled, rest) = claim.split(progress.pages as u32);
        guest.counters().pages_filled.add(progress.pages as u64);
        if state == State::Ballooned {
            guest.counters().balloon_pops.add(progress.pages as u64);
        }
        guest.settle_rest(filled, State::Zero);
        match progress.stopped {
            None => drop(rest),
            // Filled behind the handler's back: it is there.
            Some(Errno::EXIST) => guest.settle(rest, State::Private),
            Some(_) => guest.settle(rest, state),
        }
        if progress.pages as u32 == pages || progress.stopped == Some(Errno::EXIST) {
            Outcome::Done
        } else {
            Outcome::Later
        }
    }

    /// While growth is gated a touched page gets memory at once: the kernel would give it to the zero page's first
    /// writer without asking.
    fn fill_with_memory(&self, guest: &Guest, page: Gfn, state: State) -> Outcome {
        let Some(claim) = guest.table().claim(page, state) else {
            return Outcome::Later;
        };
        if guest.try_copy(&claim, &[0; PAGE_SIZE]) == Filled::Later {
            guest.settle(claim, state);
            return Outcome::Later;
        }
        guest.counters().pages_filled.add(1);
        if state == State::Ballooned {
            guest.counters().balloon_pops.add(1);
        }
        guest.settle(claim, State::Private);
        Outcome::Done
    }

    /// The empty pages around `page` in its aligned group; only itself when it was ballooned.
    fn claim_to_fill(&self, guest: &Guest, page: Gfn, state: State) -> Option<Claim> {
        if state == State::Ballooned {
            return guest.table().claim(page, state);
        }
        self.claim_group(guest, page, state, FILL_PAGES)
    }

    /// Claims the pages around `page` in its aligned group of `size`, as far as all are in the same state.
    fn claim_group(&self, guest: &Guest, page: Gfn, state: State, size: u32) -> Option<Claim> {
        let run = alike_around(guest, page, state, size)?;
        let claim = guest.claim_run(run, state, Pinned::Ignore)?;
        if claim.run().contains(page) {
            return Some(claim);
        }
        guest.settle(claim, state);
        guest.table().claim(page, state)
    }

    /// A page that should be there is missing: a caller dropped it, the kernel still watches what was to be left to
    /// it, or the fault is old news.
    fn refill(&self, guest: &Guest, page: Gfn, state: State) -> Outcome {
        let Some(claim) = guest.table().claim(page, state) else {
            return Outcome::Later;
        };
        let progress = guest.try_zero(claim.run());
        guest.settle(claim, state);
        match progress.stopped {
            // Not watched any more: settling it has let the access try again.
            None | Some(Errno::EXIST | Errno::NOENT) => Outcome::Done,
            Some(_) => Outcome::Later,
        }
    }

    fn touch_sampled(&mut self, guest: &Guest, page: Gfn) -> Outcome {
        let Some(claim) = guest.table().claim(page, State::Sampled) else {
            return Outcome::Later;
        };
        if self.sources.area.try_give_back(&claim, &mut self.buffer[0]) == Filled::Later {
            guest.settle(claim, State::Sampled);
            return Outcome::Later;
        }
        guest.counters().samples_touched.add(1);
        guest.settle(claim, State::Private);
        Outcome::Done
    }

    /// The touched page alone, so that its waiter goes on; its neighbours come when no access waits.
    fn decompress(&mut self, guest: &Guest, page: Gfn) -> Outcome {
        let Some(claim) = guest.table().claim(page, State::Compressed) else {
            return Outcome::Later;
        };
        if self
            .sources
            .cold
            .decompress(&claim, page, &mut self.buffer[0])
            .is_err()
        {
            return self.leave_to_swapper(guest, claim, page);
        }
        if guest.try_copy(&claim, &self.buffer[0]) == Filled::Later {
            guest.settle(claim, State::Compressed);
            return Outcome::Later;
        }
        self.sources.cold.forget(&claim);
        guest.counters().pages_decompressed.add(1);
        guest.settle(claim, State::Private);
        if self.nearby.len() < WAITING_GROUPS {
            self.nearby.push(page);
        }
        Outcome::Done
    }

    /// Brings back the compressed pages next to `page`, which just came back, on both sides within its aligned group.
    /// Not while growth is gated: no access asked for them.
    pub(super) fn decompress_neighbours(&mut self, guest: &Guest, page: Gfn) {
        if guest.gate().is_closed() {
            return;
        }
        let group = |page: Gfn| page.get() / NEIGHBOURS;
        for next in [page.next(), page.previous()].into_iter().flatten() {
            if group(next) == group(page)
                && next.get() < guest.table().pages()
                && guest.table().state(next) == State::Compressed
                && let Some(claim) = self.claim_group(guest, next, State::Compressed, NEIGHBOURS)
            {
                self.decompress_claim(guest, claim);
            }
        }
    }

    /// As many of the claimed pages as come back at the first try; none when the gate was closed meanwhile.
    fn decompress_claim(&mut self, guest: &Guest, claim: Claim) {
        // Asked again now that they are claimed: the thread that closes it waits for what is.
        if guest.gate().is_closed() {
            return guest.unclaim(claim);
        }
        // A damaged one, and what follows it, waits for its own touch.
        let (intact, _) = self.sources.cold.decompress_run(&claim, &mut self.buffer);
        let run = PageRun::new(claim.run().first, intact);
        let copied = match intact {
            0 => 0,
            _ => guest.try_copy_run(run, &self.buffer[..intact as usize]),
        };
        let (back, rest) = claim.split(copied);
        self.sources.cold.forget(&back);
        guest.counters().pages_decompressed.add(u64::from(copied));
        guest.counters().neighbours_decompressed.add(u64::from(copied));
        guest.settle_rest(back, State::Private);
        guest.settle_rest(rest, State::Compressed);
    }

    /// The touched page and its neighbours, for one read. While growth is gated it comes alone.
    fn swap_in(&self, guest: &Guest, page: Gfn) -> Outcome {
        let size = if guest.gate().is_closed() { 1 } else { NEIGHBOURS };
        let Some(claim) = self.claim_group(guest, page, State::Swapped, size) else {
            return Outcome::Later;
        };
        self.leave_to_swapper(guest, claim, page)
    }

    /// What would make this thread wait.
    fn leave_to_swapper(&self, guest: &Guest, claim: Claim, page: Gfn) -> Outcome {
        let wanted = PageRun::one(page);
        for page in claim.run().pages() {
            guest.table().add_marks(page, Marks::READING);
        }
        match self.swap_ins.try_send(SwapIn { claim, wanted }) {
            Ok(()) => Outcome::Done,
            Err(TrySendError::Full(SwapIn { claim, .. })) => {
                guest.unclaim(claim);
                Outcome::Later
            }
            Err(TrySendError::Disconnected(_)) => fatal(format_args!("the swap thread died")),
        }
    }
}

/// From the first page in state `state` before `page`, without a gap, to the end of the aligned group of `size`.
fn alike_around(guest: &Guest, page: Gfn, state: State, size: u32) -> Option<PageRun> {
    let group = PageRun::new(Gfn::new(page.get() / size * size), size);
    let group = guest.layout().clip(group).find(|run| run.contains(page))?;
    let alike = |before: &Gfn| guest.table().state(*before) == state;
    let before = PageRun::between(group.first, page).pages().rev();
    let first = before.take_while(alike).last().unwrap_or(page);
    Some(group.rest(first))
}
