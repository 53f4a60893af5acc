//! Pages come and go: filled with bytes or zeros, moved to areas of ours and back.
//!
//! What begins with `try_` asks the kernel once and is for the fault handler. All others repeat their calls until the
//! kernel has done what it owes, and so wait for the handler to read events: never call them from there.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Guest;
use crate::page::{PAGE_SIZE, Page};
use crate::region::error::fatal;
use crate::region::kernel::{Progress, Span, Watch, map_anonymous, remap};
use crate::region::run::PageRun;
use crate::region::table::Claim;

/// How long a mapping to be moved waits for faults that the last one disturbed: enough to fill a few pages.
const COURTESY: Duration = Duration::from_micros(20);

/// Between two tries of what the kernel has no memory for, or is disturbed in.
const PAUSE: Duration = Duration::from_micros(50);

/// Tries after which the log hears of it.
const LONG_WAIT: u32 = 100_000;

/// How a page was filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// It is there.
    Done,
    /// A mapping is being moved; its event must be read first.
    Later,
}

impl Guest {
    /// Fills one claimed page with `bytes`, once.
    pub(crate) fn try_copy(&self, claim: &Claim, bytes: &Page) -> Filled {
        let run = claim.run();
        filled(self.watch.copy(self.span(run), bytes), run, "UFFDIO_COPY")
    }

    /// Fills the first of the claimed pages of `run` with `pages`, once. Returns how many were filled.
    pub(crate) fn try_copy_run(&self, run: PageRun, pages: &[Page]) -> u32 {
        let progress = self.watch.copy(self.span(run), pages.as_flattened());
        match progress.stopped {
            // Disturbed, or the run spans several mappings.
            None | Some(Errno::AGAIN | Errno::NOMEM | Errno::BUSY | Errno::INVAL | Errno::NOENT) => {
                progress.pages as u32
            }
            Some(error) => fatal(format_args!("UFFDIO_COPY of {run:?} failed: {error}")),
        }
    }

    /// Moves one claimed page back from `from`, once. Locked pages, which do not move, are copied, by way of `buffer`.
    pub(crate) fn try_give_back(&self, claim: &Claim, from: Span, buffer: &mut Page) -> Filled {
        let run = claim.run();
        let progress = self.move_from_us(from, self.span(run));
        if progress.stopped == Some(Errno::INVAL) {
            from.copy_out(0, buffer);
            let copied = self.try_copy(claim, buffer);
            if copied == Filled::Done {
                self.forget_copied(from);
            }
            return copied;
        }
        filled(progress, run, "UFFDIO_MOVE")
    }

    /// Empties a place of ours whose page was copied back.
    pub(crate) fn forget_copied(&self, place: Span) {
        // What stays there is in the way of the next page only, which then stays where it is.
        let _ = place.discard();
    }

    /// Moves guest pages to an area of ours whose places are known to be empty.
    ///
    /// A move that is disturbed inside the kernel may move pages, not count them, and then find them in its own way:
    /// seen on Linux 6.18 as EEXIST. What is in our area was moved, whatever the count says.
    pub(crate) fn move_to_us(&self, from: Span, to: Span) -> Progress {
        let progress = self.watch.transfer(from, to);
        // Unless it is still there: mlockall(2) fills our areas with zeros.
        recount(progress, to.pages(), |at| {
            self.pagemap.is_populated(to.sub(at, 1)) && !self.pagemap.is_populated(from.sub(at, 1))
        })
    }

    /// Moves pages from an area of ours, all of whose places are full, to guest pages that are in transit. The same
    /// trap: what is no longer in our area was moved.
    pub(crate) fn move_from_us(&self, from: Span, to: Span) -> Progress {
        let progress = self.watch.transfer(from, to);
        recount(progress, to.pages(), |at| {
            !self.pagemap.is_populated(from.sub(at, 1))
        })
    }

    /// A thread waits for a page of our areas, which only mlockall(2) touches: zeros, so that it goes on.
    pub(crate) fn satisfy(&self, address: usize) {
        self.watch.fill_foreign(address);
    }

    /// Fills a claimed run with `bytes`. Not for the handler: waits for events to be read.
    pub(crate) fn copy_all(&self, run: PageRun, bytes: &[Page]) {
        let (span, bytes) = (self.span(run), bytes.as_flattened());
        let size = PAGE_SIZE;
        self.until_done(run, |done, left| {
            self.watch
                .copy(span.sub(done, left), &bytes[done * size..(done + left) * size])
        });
    }

    /// Moves a claimed run back from `from`. Locked pages, which do not move, are copied. Not for the handler.
    pub(crate) fn give_back_all(&self, run: PageRun, from: Span) {
        let span = self.span(run);
        self.until_done(run, |done, left| {
            let (from, to) = (from.sub(done, left), span.sub(done, left));
            let progress = self.move_from_us(from, to);
            if progress.stopped != Some(Errno::INVAL) || progress.pages > 0 || left > 1 {
                return progress;
            }
            let mut page = [0; PAGE_SIZE];
            from.copy_out(0, &mut page);
            let copied = self.watch.copy(to, &page);
            if copied.stopped.is_none() {
                self.forget_copied(from);
            }
            copied
        });
    }

    /// The same for pages whose mapping may be gone: it is made anew then.
    pub(crate) fn give_back_or_map(&self, run: PageRun, from: Span) {
        let span = self.span(run);
        self.until_done(run, |done, left| {
            let to = span.sub(done, left);
            let progress = self.move_from_us(from.sub(done, left), to);
            if progress.stopped == Some(Errno::NOENT) && left == 1 {
                self.map_anew(to, Errno::NOENT);
                return Progress {
                    stopped: Some(Errno::AGAIN),
                    ..progress
                };
            }
            progress
        });
    }

    /// Watched anonymous memory where the kernel unmapped what was there and then failed. Its pages are in our hands,
    /// and a thread that touches them waits, so nothing else will do. Not for the handler.
    pub(crate) fn map_anew(&self, span: Span, error: Errno) {
        log::warn!("{span:?} lost its mapping: {error}");
        self.insist("map", span, || {
            map_anonymous(span).and_then(|()| self.watch_anew(span))
        });
    }

    /// Watches anonymous memory that was just mapped.
    pub(crate) fn watch_anew(&self, span: Span) -> Result<(), Errno> {
        span.flag_private()?;
        self.watch_area(span, Watch::MissingAndWrites)
    }

    /// Asks the kernel for what it owes until it has room for it: mappings and memory come and go.
    pub(crate) fn insist(&self, what: &str, span: Span, mut ask: impl FnMut() -> Result<(), Errno>) {
        let mut tries = 0u32;
        while let Err(error) = ask() {
            if !matches!(error, Errno::NOMEM | Errno::AGAIN | Errno::BUSY | Errno::INTR) {
                fatal(format_args!("cannot {what} {span:?}: {error}"));
            }
            if tries == 0 {
                self.counters.mapping_failures.add(1);
                log::error!("cannot {what} {span:?} yet: {error}");
            }
            tries = tries.saturating_add(1);
            std::thread::sleep(PAUSE * tries.min(200));
        }
    }

    /// Maps the zero page over a claimed run. Not for the handler.
    pub(crate) fn zero_all(&self, run: PageRun) {
        let span = self.span(run);
        self.until_done(run, |done, left| self.watch.zero(span.sub(done, left)));
    }

    /// Repeats a filling call until the whole run is filled, however long the kernel has no memory for it. A page that
    /// cannot be filled is a page lost, so anything but "try again" ends the process.
    fn until_done(&self, run: PageRun, mut fill: impl FnMut(usize, usize) -> Progress) {
        let (mut done, all) = (0, run.count as usize);
        let (mut most, mut waits) = (all, 0u32);
        while done < all {
            let pages = most.min(all - done);
            let progress = fill(done, pages);
            done += progress.pages;
            match progress.stopped {
                None => most = all,
                Some(Errno::AGAIN) if progress.pages > 0 => {}
                // The run spans several mappings, which one call cannot.
                Some(Errno::INVAL | Errno::NOENT) if pages > 1 => most = pages / 2,
                Some(error @ (Errno::AGAIN | Errno::BUSY | Errno::NOMEM)) => {
                    // The handler reads the event that stands in the way; it never waits for this thread.
                    waits = waits.saturating_add(1);
                    match waits {
                        0..16 => std::thread::yield_now(),
                        _ => std::thread::sleep(PAUSE),
                    }
                    if waits == LONG_WAIT {
                        log::error!("{run:?} cannot be filled yet: {error}");
                    }
                }
                Some(error) => fatal(format_args!(
                    "filling {run:?} stopped after {done} pages: {error}"
                )),
            }
        }
    }

    /// Moves the mapping of `from` over `onto`, after the faults that the last move disturbed had their turn: one move
    /// close upon another would keep their pages from being filled. Not for the handler, which reads the event.
    pub(crate) fn move_mapping(&self, from: Span, onto: Span) -> Result<(), Errno> {
        let start = Instant::now();
        while self.disturbed_faults() > 0 && start.elapsed() < COURTESY {
            std::hint::spin_loop();
        }
        self.set_moving(true);
        let moved = remap(from, onto);
        self.set_moving(false);
        moved
    }
}

/// Adds the pages that `was_moved` to a progress that stopped because the next page seemed to be there already.
fn recount(progress: Progress, pages: usize, was_moved: impl Fn(usize) -> bool) -> Progress {
    if progress.stopped != Some(Errno::EXIST) {
        return progress;
    }
    let uncounted = (progress.pages..pages).take_while(|&at| was_moved(at)).count();
    match progress.pages + uncounted {
        all if all == pages => Progress { pages, stopped: None },
        some if uncounted > 0 => Progress {
            pages: some,
            stopped: Some(Errno::AGAIN),
        },
        _ => progress,
    }
}

fn filled(progress: Progress, run: PageRun, call: &str) -> Filled {
    match progress.stopped {
        None => Filled::Done,
        Some(Errno::AGAIN | Errno::NOMEM | Errno::BUSY) => Filled::Later,
        Some(error) => fatal(format_args!("{call} of {run:?} failed: {error}")),
    }
}
