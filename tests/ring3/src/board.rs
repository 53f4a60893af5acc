//! The board: everything a guest needs that is not memory under test.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::program::field;
use crate::{Error, Memory, PAGE, Program, Work};

/// Where the memory under test starts in the guest: guest physical and guest virtual are the same.
pub const MEMORY_BASE: u64 = 1 << 30;

/// Most vCPUs of one guest.
pub(crate) const MAX_VCPUS: usize = 16;
/// Most memory under test: one page of page directory per GiB, the board's own among them.
const MAX_MEMORY: u64 = (PAGE_DIRECTORIES as u64 - 1) << 30;

const PAGE_DIRECTORIES: usize = 32;
const HUGE: usize = 2 << 20;

// Page frames of the board. The control page of a vCPU holds its fields at the start and its stack at the end.
const TSS: usize = PAGE;
const PML4: usize = 2 * PAGE;
const PDPT: usize = 3 * PAGE;
const PD: usize = 4 * PAGE;
const CODE: usize = PD + PAGE_DIRECTORIES * PAGE;
const CONTROL: usize = CODE + MAX_VCPUS * PAGE;
const TABLE: usize = CONTROL + MAX_VCPUS * PAGE;

/// Present, writable, user.
const ENTRY: u64 = 0b111;
/// Present, writable, user, accessed, dirty, 2 MiB.
const HUGE_ENTRY: u64 = 0xe7;

/// Where a vCPU starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) rip: u64,
    pub(crate) rsp: u64,
    pub(crate) control: u64,
    pub(crate) seed: u64,
}

/// What a vCPU's program has counted since the guest was built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Words (access) or whole pages (churn) read.
    pub reads: u64,
    /// Words (access), changes (churn) or whole pages (fill) written.
    pub writes: u64,
    /// Rounds of fill, or of churn's window through all its pages.
    pub passes: u64,
    /// Wrong pages found by churn.
    pub errors: u64,
    /// The first wrong page.
    pub first_error: Option<Mismatch>,
}

/// A word that was not what the guest had written last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("page {page}, byte {offset:#x}: wanted {wanted:#x}, found {found:#x}")]
pub struct Mismatch {
    /// The page, counted from the start of the memory under test.
    pub page: u64,
    /// The word's place in the page, in bytes.
    pub offset: u64,
    /// What the word should have been.
    pub wanted: u64,
    /// What it was.
    pub found: u64,
}

/// The board's own memory: code, page tables, TSS, control pages, table of expected page states.
#[derive(Debug)]
pub(crate) struct Board {
    memory: Memory,
}

impl Board {
    /// Builds the board for a guest with `memory_len` bytes under test and one vCPU per item of `work`.
    ///
    /// # Errors
    /// When the work does not fit the memory, or no memory is left for the board.
    pub(crate) fn new(memory_len: usize, work: &[Work]) -> Result<Self, Error> {
        check(memory_len, work)?;
        let table = memory_len / PAGE * size_of::<u32>();
        let memory = Memory::map((TABLE + table).next_multiple_of(HUGE), "the guest's board")?;
        let board = Self { memory };
        board.write_page_tables(memory_len);
        for (vcpu, work) in work.iter().enumerate() {
            board.write_work(vcpu, work);
        }
        Ok(board)
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Guest physical address of the top page table.
    pub(crate) fn cr3(&self) -> u64 {
        PML4 as u64
    }

    /// Guest physical address of the task state segment.
    pub(crate) fn tss(&self) -> u64 {
        TSS as u64
    }

    pub(crate) fn entry(&self, vcpu: usize, seed: u64) -> Entry {
        let control = CONTROL + vcpu * PAGE;
        Entry {
            rip: (CODE + vcpu * PAGE) as u64,
            rsp: (control + PAGE) as u64,
            control: control as u64,
            // Zero is the one state that xorshift never leaves.
            seed: seed.max(1),
        }
    }

    pub(crate) fn counters(&self, vcpu: usize) -> Counters {
        let errors = self.get(vcpu, field::ERRORS);
        Counters {
            reads: self.get(vcpu, field::READS),
            writes: self.get(vcpu, field::WRITES),
            passes: self.get(vcpu, field::PASSES),
            errors,
            first_error: (errors > 0).then(|| self.first_error(vcpu)),
        }
    }

    /// In which state churn has left a page.
    pub(crate) fn state(&self, page: u32) -> u32 {
        let at = TABLE + page as usize * size_of::<u32>();
        let pair = self.memory.word(at & !7).load(Ordering::Acquire);
        (pair >> (8 * (at & 7))) as u32
    }

    pub(crate) fn ask_to_stop(&self, vcpu: usize, stop: bool) {
        self.set(vcpu, field::STOP, u64::from(stop));
    }

    /// The longest time between two accesses since the last call, in TSC ticks.
    pub(crate) fn take_stall(&self, vcpu: usize) -> u64 {
        self.word(vcpu, field::STALL).swap(0, Ordering::Relaxed)
    }

    pub(crate) fn set_pace(&self, vcpu: usize, ticks: u64) {
        self.set(vcpu, field::PACE, ticks);
    }

    /// Changes the pages that a vCPU works on. The two words change one after the other; the set shrinks first,
    /// so that no access leaves old and new set together.
    pub(crate) fn set_working_set(&self, vcpu: usize, pages: &Range<u32>) {
        self.set(vcpu, field::PAGES, 1);
        self.set(vcpu, field::FIRST, u64::from(pages.start));
        self.set(vcpu, field::PAGES, pages.len() as u64);
    }

    fn first_error(&self, vcpu: usize) -> Mismatch {
        let at = self.get(vcpu, field::WRONG_AT) - MEMORY_BASE;
        Mismatch {
            page: at / PAGE as u64,
            offset: at % PAGE as u64,
            wanted: self.get(vcpu, field::WRONG_WANTED),
            found: self.get(vcpu, field::WRONG_FOUND),
        }
    }

    /// Identity page tables of 2 MiB pages for the board and the memory under test.
    fn write_page_tables(&self, memory_len: usize) {
        self.memory.write(PML4, PDPT as u64 | ENTRY);
        for i in 0..PAGE_DIRECTORIES {
            self.memory.write(PDPT + 8 * i, (PD + i * PAGE) as u64 | ENTRY);
        }
        self.map_huge(0, self.memory.len());
        self.map_huge(MEMORY_BASE, memory_len);
    }

    fn map_huge(&self, start: u64, len: usize) {
        for at in (start..start + len as u64).step_by(HUGE) {
            let slot = PD + 8 * (at as usize / HUGE);
            self.memory.write(slot, at | HUGE_ENTRY);
        }
    }

    fn write_work(&self, vcpu: usize, work: &Work) {
        self.memory.copy_in(CODE + vcpu * PAGE, work.program.code());
        let (pages, parameters) = match work.program {
            Program::Access { write_share } => (work.pages.len(), [u64::from(write_share), 0, 0]),
            // The program counts down to 0: a count that never gets there is a window that never moves.
            Program::Churn { window, dwell } => (window as usize, [u64::from(dwell), 0, 0]),
            Program::Fill {
                value,
                stride,
                rounds,
            } => (work.pages.len(), [value, stride, u64::from(rounds)]),
        };
        for (field, value) in field::PARAMETER.into_iter().zip(parameters) {
            self.set(vcpu, field, value);
        }
        self.set(vcpu, field::BASE, MEMORY_BASE);
        self.set(vcpu, field::TABLE, TABLE as u64);
        self.set(vcpu, field::ALL_FIRST, u64::from(work.pages.start));
        self.set(vcpu, field::ALL_PAGES, work.pages.len() as u64);
        self.set(vcpu, field::FIRST, u64::from(work.pages.start));
        self.set(vcpu, field::PAGES, pages as u64);
    }

    fn word(&self, vcpu: usize, field: usize) -> &std::sync::atomic::AtomicU64 {
        self.memory.word(CONTROL + vcpu * PAGE + field)
    }

    fn get(&self, vcpu: usize, field: usize) -> u64 {
        self.word(vcpu, field).load(Ordering::Acquire)
    }

    fn set(&self, vcpu: usize, field: usize, value: u64) {
        self.word(vcpu, field).store(value, Ordering::Release);
    }
}

/// Refuses work that would leave the memory, and memory that the board cannot describe.
fn check(memory_len: usize, work: &[Work]) -> Result<(), Error> {
    if memory_len == 0 || !memory_len.is_multiple_of(PAGE) || memory_len as u64 > MAX_MEMORY {
        return Err(Error::Config(format!(
            "guest memory of {memory_len} bytes: give whole pages, 1 to {MAX_MEMORY} bytes"
        )));
    }
    if work.is_empty() || work.len() > MAX_VCPUS {
        return Err(Error::Config(format!(
            "{} vCPUs: give 1 to {MAX_VCPUS}",
            work.len()
        )));
    }
    let pages = memory_len / PAGE;
    for (vcpu, work) in work.iter().enumerate() {
        if work.pages.is_empty() || work.pages.end as usize > pages {
            return Err(Error::Config(format!(
                "vCPU {vcpu} works on pages {:?} of {pages}",
                work.pages
            )));
        }
        if let Program::Churn { window, .. } = work.program
            && (window == 0 || window as usize > work.pages.len())
        {
            return Err(Error::Config(format!(
                "vCPU {vcpu}: a window of {window} in {} pages",
                work.pages.len()
            )));
        }
    }
    Ok(())
}

/// TSC ticks as time.
pub(crate) fn ticks_to_time(ticks: u64, khz: u32) -> Duration {
    Duration::from_secs_f64(ticks as f64 / (f64::from(khz.max(1)) * 1e3))
}
