//! A guest: board, memory under test, and vCPUs that can be watched and steered from outside.
#![allow(unsafe_code)]
// UNSAFETY: hands memory to a virtual machine; the one unsafe constructor passes its contract on.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::board::{Board, Counters, ticks_to_time};
use crate::churn;
use crate::machine::Machine;
use crate::vcpu::Vcpu;
use crate::{Error, Memory, Work};

/// How long a vCPU gets to leave the guest: far more than a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(20);

/// A guest with one thread per vCPU. It starts paused; dropping it ends its threads.
#[derive(Debug)]
pub struct Guest {
    // Fields drop in this order: threads first, then what they run on.
    vcpus: Vec<Vcpu>,
    _machine: Machine,
    board: Board,
    work: Vec<Work>,
    _memory: Option<Arc<Memory>>,
}

impl Guest {
    /// A guest on memory of this crate, with one vCPU per item of `work`.
    ///
    /// # Errors
    /// When no guest can run here, the work does not fit the memory, or the system is out of something.
    pub fn new(memory: &Arc<Memory>, work: &[Work]) -> Result<Self, Error> {
        // SAFETY: the guest keeps the memory alive itself.
        let mut guest = unsafe { Self::over(memory.as_ptr(), memory.len(), work) }?;
        guest._memory = Some(Arc::clone(memory));
        Ok(guest)
    }

    /// A guest on `len` bytes at `memory` that something else owns, with one vCPU per item of `work`.
    ///
    /// # Safety
    /// The range stays the guest's (mapped, used by nothing that would mind being written to) until the guest
    /// is dropped. What is mapped there may change: KVM follows.
    ///
    /// # Errors
    /// As [`Guest::new`].
    pub unsafe fn over(memory: NonNull<u8>, len: usize, work: &[Work]) -> Result<Self, Error> {
        let board = Board::new(len, work)?;
        // SAFETY: the board lives in the guest beside the machine; the caller vouches for the memory.
        let machine = unsafe { Machine::new(&board, memory, len) }?;
        let vcpus = work
            .iter()
            .enumerate()
            .map(|(index, work)| {
                let entry = board.entry(index, work.seed);
                Vcpu::spawn(index, machine.vcpu(index, &board, entry)?)
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            vcpus,
            _machine: machine,
            board,
            work: work.to_vec(),
            _memory: None,
        })
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// Lets all programs run: from their start, from where they were paused, or on after they were done.
    pub fn start(&self) {
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            self.board.ask_to_stop(index, false);
            vcpu.run();
        }
    }

    /// Takes all vCPUs out of the guest, wherever their programs are, and returns when they are out.
    ///
    /// # Errors
    /// When one does not leave, or had ended with an error.
    pub fn pause(&self) -> Result<(), Error> {
        self.vcpus.iter().try_for_each(|vcpu| vcpu.pause(PATIENCE))
    }

    /// Lets paused vCPUs go on where they were.
    pub fn resume(&self) {
        self.vcpus.iter().for_each(Vcpu::resume);
    }

    /// Asks all programs to end, waits until they have, and returns what they counted.
    ///
    /// # Errors
    /// When a vCPU does not end or ended for another reason, or when a guest found a wrong page.
    pub fn stop(&self) -> Result<Vec<Counters>, Error> {
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            self.board.ask_to_stop(index, true);
            vcpu.resume();
        }
        self.wait_done(PATIENCE)
    }

    /// Waits until all programs have ended by themselves, as [`crate::Program::Fill`] does.
    ///
    /// # Errors
    /// As [`Guest::stop`].
    pub fn wait_done(&self, limit: Duration) -> Result<Vec<Counters>, Error> {
        for vcpu in &self.vcpus {
            vcpu.wait_done(limit)?;
        }
        self.check()?;
        Ok(self.counters())
    }

    /// Waits until `reached` says so of the counters of all vCPUs.
    ///
    /// # Errors
    /// When that takes longer than `limit`, a vCPU ends with an error, or a guest finds a wrong page.
    pub fn wait(&self, limit: Duration, reached: impl Fn(&[Counters]) -> bool) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        loop {
            self.check()?;
            if reached(&self.counters()) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let what = "count far enough";
                return Err(Error::Deadline { vcpu: 0, what, limit });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Fails when a vCPU has ended with an error, or a guest has found a wrong page.
    ///
    /// # Errors
    /// That error.
    pub fn check(&self) -> Result<(), Error> {
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            vcpu.failure()?;
            let counters = self.board.counters(index);
            if let Some(first) = counters.first_error {
                return Err(Error::Corrupt {
                    vcpu: index,
                    errors: counters.errors,
                    first,
                });
            }
        }
        Ok(())
    }

    /// What must be in `page` of the memory under test by all that [`crate::Program::Churn`] did to it, once that was
    /// stopped: a pause may come between a page and the note of it.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn churned(&self, page: u32) -> [u64; crate::PAGE / 8] {
        churn::words(self.board.state(page))
    }

    /// What all vCPUs have counted so far; they need not stop for it.
    pub fn counters(&self) -> Vec<Counters> {
        (0..self.vcpus.len())
            .map(|vcpu| self.board.counters(vcpu))
            .collect()
    }

    /// The longest time between two accesses of a vCPU since this was last asked, pauses of the whole vCPU by the
    /// machine included.
    pub fn take_longest_stall(&self, vcpu: usize) -> Duration {
        ticks_to_time(self.board.take_stall(vcpu), self.vcpus[vcpu].tsc_khz())
    }

    /// Lets a vCPU rest after each access (the guest spins with `pause`); zero means full speed.
    pub fn set_pace(&self, vcpu: usize, rest: Duration) {
        let ticks = rest.as_secs_f64() * f64::from(self.vcpus[vcpu].tsc_khz()) * 1e3;
        self.board.set_pace(vcpu, ticks as u64);
    }

    /// Changes which pages [`crate::Program::Access`] touches, while it runs.
    ///
    /// # Errors
    /// When `pages` is empty or not within the pages that the vCPU was given.
    pub fn set_working_set(&self, vcpu: usize, pages: Range<u32>) -> Result<(), Error> {
        let all = &self.work[vcpu].pages;
        if pages.is_empty() || pages.start < all.start || pages.end > all.end {
            return Err(Error::Config(format!(
                "vCPU {vcpu}: a working set of pages {pages:?} within {all:?}"
            )));
        }
        self.board.set_working_set(vcpu, &pages);
        Ok(())
    }
}
