//! The port between a region (in the process that owns a guest) and the manager (which owns the pool).
//!
//! Everything travels in batches. The conversation about one content:
//!
//! 1. A region reports `(gfn, sketch)` of quiet pages, in gfn order. For a content that no region has reported the
//!    answer is [`Answer::Noted`]: the page is now a hint.
//! 2. For a content that another page has as its hint the answer is [`Answer::Publish`]: the region sends a copy of
//!    the bytes, the manager names them itself, writes the pool page and grants a slot.
//! 3. The page behind the hint gets an [`Offer`]. From then on every report of the content is answered by
//!    [`Answer::Shared`] at once.
//!
//! **Guesses.** When two pages of a guest equal two slots the same distance apart, so do most likely the pages between:
//! the region may [claim](Port::claim) the slots between and compare at once, without naming the pages.
//!
//! **References.** Each of [`Answer::Shared`], [`Publication::Granted`] and [`Offer`] carries exactly one reference
//! to its slot, taken before the region could look at the pool page. The region compares all 4096 bytes; it keeps
//! the reference for as long as it maps the page, and gives it back with [`Port::release`] when the comparison failed
//! or after its last mapping is gone. There is no other "accept" or "decline".
//!
//! **Trust.** The manager checks every number: a region that names pages it does not have, releases what it does not
//! hold or sends bytes that do not match their sketch gets an error or a refusal and is counted. The region in turn
//! trusts the manager for liveness only: it checks slots against the pool's size and compares all bytes.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::hash::{DomainKey, Sketch};
use crate::page::{Gfn, GuestId, Page, PoolGeneration, Slot};

/// Most pages in one [`Port::report`] or slots in one [`Port::release`].
pub const REPORT_BATCH: usize = 4096;

/// Most pages in one [`Port::publish`]: half a MiB of bytes. Runs go on from one call to the next, so that longer calls
/// would gain nothing.
pub const PUBLISH_BATCH: usize = 128;

/// What a region knows about the pool it may map.
#[derive(Debug, Clone)]
pub struct Session {
    /// This guest's number in its sharing domain.
    pub guest: GuestId,
    /// The pool that granted slots refer to.
    pub generation: PoolGeneration,
    /// The domain's secret, for a [`PageHasher`](crate::PageHasher).
    pub key: DomainKey,
    /// The pool's memfd, opened read-only. Granted slots are always inside the file; everything past its end is
    /// SIGBUS, and reading a slot that was not granted may show anything.
    pub pool: Arc<File>,
    /// Slots the pool may ever have: every granted slot is below it, so one mapping of this size sees them all.
    pub slot_limit: u32,
}

/// One quiet page: its number and the sketch of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Which page.
    pub gfn: Gfn,
    /// The sketch of its content, under the session's key.
    pub sketch: Sketch,
}

/// What the manager answers to one [`Report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// First sight of this content: the page is the hint now and may get an [`Offer`] later.
    Noted,
    /// The pool has this content. Carries one reference.
    Shared(Slot),
    /// Another page had this content when it was last looked at: send the bytes with [`Port::publish`].
    Publish,
}

/// What became of one published page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication {
    /// The bytes are in the pool, put there now or by another region that was faster. Carries one reference.
    Granted(Slot),
    /// The other page with this content has gone: this one is the hint now, as after [`Answer::Noted`].
    Noted,
    /// Not in the pool.
    Refused(Refusal),
}

/// Why a published page did not enter the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The pool, or this guest's part of it, is at its limit. Worth trying again a few seconds later.
    PoolFull,
    /// The bytes do not have the sketch they were sent under: the page changed on the way, or the sender lies.
    SketchMismatch,
    /// Another content has the same sketch. Never report this content again.
    Collision,
}

/// "Your page `gfn`, the hint for some content, is in the pool now." Carries one reference to `slot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// A page this region reported and has not reported anew since; its content may have changed.
    pub gfn: Gfn,
    /// Where the content is.
    pub slot: Slot,
}

/// How [`Port::reconnect`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconnected {
    /// The same manager and pool: references are exactly those that were named, every hint is forgotten.
    SamePool,
    /// A manager with another pool. Slots of the old one keep their bytes for as long as its fd or a mapping is
    /// held, but no other region will ever share them: report those pages anew and move over.
    FreshPool,
}

/// Why the manager did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// The manager is gone. Mapped pages stay valid; sharing pauses until [`Port::reconnect`] succeeds.
    #[error("the manager is gone; mapped pool pages stay valid, reconnect to share on")]
    Gone,
    /// The slots belong to another pool than the session's; nothing was done.
    #[error("slots of {slots:?} were named, but the session's pool is {session:?}; nothing was done")]
    StaleGeneration {
        /// The generation that the caller named.
        slots: PoolGeneration,
        /// The generation of the session.
        session: PoolGeneration,
    },
    /// The call named something it must not; nothing of it was done. Counted by the manager.
    #[error("the manager refused the call: {0}")]
    Invalid(Invalid),
    /// The call came from a connection that no longer speaks for this guest: the guest has ended, or a newer connection
    /// speaks for it. Nothing of the call was done.
    #[error(
        "this connection no longer speaks for {0:?}: the guest has ended or has a newer connection; nothing was done"
    )]
    Superseded(GuestId),
    /// The manager's side failed. Nothing of the call was done.
    #[error("the manager failed")]
    Failed(#[source] std::io::Error),
}

/// What was wrong with a refused call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// More items than one call may carry.
    #[error("{count} items in one call, the most is {limit}")]
    Batch {
        /// Items in the call.
        count: u32,
        /// Most items allowed.
        limit: u32,
    },
    /// A page beyond the guest's memory.
    #[error("{gfn:?} is beyond the guest's {pages} pages")]
    Gfn {
        /// The page named.
        gfn: Gfn,
        /// Pages the guest has.
        pages: u32,
    },
    /// More references released than are held.
    #[error("{0:?} was released more often than it was granted")]
    NotHeld(Slot),
}

/// The manager as a region sees it.
///
/// Calls block until the manager has answered, so they belong on the scanner's thread, never in a fault handler.
/// On any error the `answers`, `offers` and `results` passed in are left empty.
pub trait Port: Send {
    /// The pool and key that this port works with now. Changes only in [`Port::reconnect`].
    fn session(&self) -> &Session;

    /// Reports quiet pages, best in gfn order; `answers` is cleared and gets one answer for each, in order.
    ///
    /// A page's new report replaces its last one. At most [`REPORT_BATCH`] pages.
    ///
    /// # Errors
    /// See [`PortError`]; nothing was granted then.
    fn report(&mut self, pages: &[Report], answers: &mut Vec<Answer>) -> Result<(), PortError>;

    /// Sends copies of pages whose report was answered by [`Answer::Publish`], best in gfn order; `bytes[i]` is the
    /// content of `pages[i]`. `results` is cleared and gets one result for each, in order. Consecutive pages get
    /// consecutive slots where possible. At most [`PUBLISH_BATCH`] pages.
    ///
    /// # Errors
    /// See [`PortError`]; nothing was granted then.
    ///
    /// # Panics
    /// When the two slices differ in length.
    fn publish(
        &mut self,
        pages: &[Report],
        bytes: &[Page],
        results: &mut Vec<Publication>,
    ) -> Result<(), PortError>;

    /// Fetches waiting offers, at most [`REPORT_BATCH`] at a time, in gfn order; `offers` is cleared first.
    ///
    /// # Errors
    /// See [`PortError`].
    fn offers(&mut self, offers: &mut Vec<Offer>) -> Result<(), PortError>;

    /// A descriptor that polls readable while offers may be waiting. Never read it, only poll.
    fn offers_ready(&self) -> BorrowedFd<'_>;

    /// Withdraws pages as hints: they were ballooned, swapped or are written all the time. Unknown ones are ignored.
    /// An offer may still arrive when it was already under way. At most [`REPORT_BATCH`] pages.
    ///
    /// # Errors
    /// See [`PortError`].
    fn withdraw(&mut self, pages: &[Gfn]) -> Result<(), PortError>;

    /// Asks for one reference to each of `slots`, which pages are guessed to equal because their neighbours on both sides
    /// equal the slots on both sides. `answers` is cleared and gets one answer for each, in order: [`Answer::Shared`] with
    /// the same slot, or [`Answer::Noted`] for a slot that is not in use or not to be had. Says nothing about any page:
    /// only for pages that are not hints. At most [`REPORT_BATCH`] slots.
    ///
    /// # Errors
    /// As [`Port::release`]; nothing was granted then.
    fn claim(
        &mut self,
        generation: PoolGeneration,
        slots: &[Slot],
        answers: &mut Vec<Answer>,
    ) -> Result<(), PortError>;

    /// Gives back one reference for each slot named; a slot may be named several times. Only after the last mapping
    /// that used the reference is gone. At most [`REPORT_BATCH`] slots.
    ///
    /// # Errors
    /// [`PortError::StaleGeneration`] when `generation` is not the session's: references to an old pool died with
    /// its manager and need no release. Otherwise see [`PortError`].
    fn release(&mut self, generation: PoolGeneration, slots: &[Slot]) -> Result<(), PortError>;

    /// Whether it is time to try [`Port::reconnect`]. A port whose tries cost something says no for a while after one
    /// that failed.
    fn may_reconnect(&self) -> bool {
        true
    }

    /// Tries once to reach a manager again after [`PortError::Gone`]. `held` names every reference to the session's
    /// pool that the region still uses, one entry for each. The session is new afterwards.
    ///
    /// # Errors
    /// [`PortError::Gone`] while there is still no manager; the session is the old one then.
    fn reconnect(&mut self, held: &[Slot]) -> Result<Reconnected, PortError>;
}
