//! Memory that the kernel had to itself comes under management: watched, and each page settled as what it is.

use rustix::io::Errno;

use super::Guest;
use crate::region::kernel::{Found, Look};
use crate::region::table::{Claim, State};

/// Pages that the kernel does not watch, and why.
#[must_use = "the claim blocks its guest until it is settled"]
pub(crate) struct Unwatched {
    claim: Claim,
    error: Errno,
}

impl Unwatched {
    /// Leaves the pages to the kernel, as they were. Where even that fails some stay watched: the handler fills what is
    /// missing of them. Returns why they cannot be watched.
    pub(crate) fn leave_unwatched(self, guest: &Guest) -> Errno {
        let run = self.claim.run();
        let left = guest.unwatch(run).and_then(|()| guest.span(run).flag_huge());
        if let Err(error) = left {
            log::warn!("{run:?} cannot be left to the kernel: {error}");
        }
        guest.settle(self.claim, State::Huge);
        self.error
    }
}

impl Guest {
    /// Starts watching claimed pages that were unwatched so far, and settles each as what it is.
    pub(crate) fn manage(&self, claim: Claim) -> Result<(), Unwatched> {
        let run = claim.run();
        if let Err(error) = self.watch(run) {
            return Err(Unwatched { claim, error });
        }
        let mut found = Vec::new();
        if let Err(error) = self.scan(run, Look::Populated, &mut found) {
            // A private page that is missing after all is filled when it is touched, and found out when it is taken.
            log::warn!("{run:?} cannot be looked at: {error}; taken for private");
            self.settle(claim, State::Private);
            return Ok(());
        }
        self.settle_as_found(claim, &found);
        Ok(())
    }

    /// Populated pages are private, the others empty.
    fn settle_as_found(&self, claim: Claim, populated: &[Found]) {
        let mut left = claim;
        for found in populated {
            let run = self.layout.run_at(found.start, found.end);
            let run = run.expect("found where it was looked for");
            let before = run.first.since(left.run().first);
            let (empty, rest) = left.split(before);
            let (populated, rest) = rest.split(run.count);
            left = rest;
            self.settle_rest(empty, State::Empty);
            self.settle_rest(populated, State::Private);
        }
        self.settle_rest(left, State::Empty);
    }
}
