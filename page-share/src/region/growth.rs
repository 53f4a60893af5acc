//! Growth of a region while its host has no memory to give: the gate, and credit to pass it.

use crate::region::engine::lock;
use crate::region::merge::Merger;
use crate::region::mover::BATCH;
use crate::region::run::PageRun;
use crate::region::{Growth, Region};

impl Region {
    /// Closes the growth gate: from now on each write that breaks a pool page, and each touch of a page that is empty,
    /// compressed or swapped, waits for [`Region::add_credit`]. Huge blocks are split and the kernel's zero pages
    /// dropped first, because it would let both grow without asking. Takes a while in a big guest.
    pub fn close_gate(&self) {
        self.guest.gate().set_closed(true);
        for part in self.guest.layout().runs() {
            for piece in part.pieces(BATCH * 4) {
                let mut engine = lock(&self.engine);
                let merger = engine.merger();
                merger.split_run(piece);
                if let Err(error) = merger.drop_zeros(piece) {
                    log::warn!("zero pages of {piece:?} may grow ungated: {error}");
                }
            }
        }
        self.each_run(Merger::gate);
    }

    /// Opens the gate; accesses that wait go on.
    pub fn open_gate(&self) {
        self.guest.gate().set_closed(false);
        // Before the engine is free, which may take a while: the handler lets through what waits.
        self.handler.ring();
        self.each_run(Merger::ungate);
    }

    /// Lets `pages` more pages grow while the gate is closed.
    pub fn add_credit(&self, pages: u32) {
        self.guest.gate().add_credit(pages);
        self.handler.ring();
    }

    /// Lets `pages` pages grow while the gate is closed, counted from when [`Region::growth`] said `grown`, instead of
    /// what was granted before.
    pub fn set_credit(&self, pages: u32, grown: u64) {
        self.guest.gate().set_credit(pages, grown);
        if pages > 0 {
            self.handler.ring();
        }
    }

    /// What grew through the closed gate, and who waits at it.
    pub fn growth(&self) -> Growth {
        self.guest.gate().growth()
    }

    /// Unparks `thread` from now on whenever an access begins to wait for credit. For one thread: the first.
    pub fn watch_growth(&self, thread: std::thread::Thread) {
        self.guest.gate().watch(thread);
    }

    fn each_run(&self, action: impl Fn(&Merger, PageRun)) {
        for part in self.guest.layout().runs() {
            for piece in part.pieces(BATCH * 4) {
                action(lock(&self.engine).merger(), piece);
            }
        }
    }
}
