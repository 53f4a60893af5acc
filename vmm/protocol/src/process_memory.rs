//! What a process holds of the machine's memory, as the kernel counts it.
//!
//! [`Held`] is cheap and exact enough to enforce a budget by, once a second: anonymous pages and page tables, both
//! counted by the kernel as they come and go. Guest RAM that is not shared is anonymous, so are pages that a
//! copy-on-write break made private again; pages of a pool are not, so a pool is counted once, by its file. What a
//! person wants to know, private and proportional size, each VMM says of itself (`levy_machine::supervisor::Footprint`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

/// Bytes that one process alone costs the machine.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Anonymous memory, swapped pages not included. From `RssAnon` of `/proc/PID/status`.
    pub anonymous: u64,
    /// Page tables. From `VmPTE`.
    pub page_tables: u64,
}

impl Held {
    /// Reads what process `pid` holds.
    ///
    /// # Errors
    /// When the process is gone or may not be read.
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::parse(&std::fs::read_to_string(proc_file(pid, "status"))?)
    }

    /// Both together.
    pub fn total(self) -> u64 {
        self.anonymous + self.page_tables
    }

    fn parse(text: &str) -> io::Result<Self> {
        Ok(Self {
            anonymous: field(text, "RssAnon:")?,
            page_tables: field(text, "VmPTE:")?,
        })
    }
}

/// What the kernel needs for one mapping of a process, bytes: 192 for the mapping and 36 to 46 of the tree that finds it
/// (`docs/host-budget.md` says how that was measured).
pub const MAPPING_BYTES: u64 = 240;

/// Mappings are counted anew after this time.
const RECOUNT: Duration = Duration::from_secs(15);

/// A process that was not asked about for this long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Mappings counted in a second, on average: a hundredth of a CPU.
const MAPPINGS_PER_SECOND: f64 = 16_000.0;

/// What one process costs the machine.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// What the process could count of itself.
    pub held: Held,
    /// Its mappings, up to 15 s ago; `None` where the kernel does not show them.
    pub mappings: Option<u64>,
}

/// Counts many processes again and again.
///
/// The kernel has no number of a process's mappings, only the list of them. So they are counted rarely, and not all
/// processes at once.
#[derive(Debug, Default)]
pub struct ProcessMemory {
    mappings: BTreeMap<u32, Mappings>,
    /// Mappings that may be counted now.
    allowance: f64,
}

/// The mappings of one process.
#[derive(Debug, Clone, Copy)]
struct Mappings {
    count: Option<u64>,
    age: Duration,
}

impl ProcessMemory {
    /// Lets `elapsed` pass.
    pub fn pass(&mut self, elapsed: Duration) {
        let earned = elapsed.as_secs_f64() * MAPPINGS_PER_SECOND;
        self.allowance = (self.allowance + earned).min(MAPPINGS_PER_SECOND);
        for mappings in self.mappings.values_mut() {
            mappings.age = mappings.age.saturating_add(elapsed);
        }
        self.mappings.retain(|_, mappings| mappings.age < FORGOTTEN);
    }

    /// What process `pid` costs.
    ///
    /// # Errors
    /// When the process is gone or may not be read.
    pub fn of(&mut self, pid: u32) -> io::Result<Counted> {
        let held = Held::of(pid)?;
        let known = self.mappings.get(&pid).copied();
        let due = known.is_none_or(|known| known.age >= RECOUNT);
        if !due || self.allowance <= 0.0 {
            let mappings = known.and_then(|known| known.count);
            return Ok(Counted { held, mappings });
        }
        // A process that is not the manager's own kind, or hides: then its guest's pages say how many there may be.
        let count = mappings(pid).ok();
        self.allowance -= count.unwrap_or(1) as f64;
        let age = Duration::ZERO;
        self.mappings.insert(pid, Mappings { count, age });
        Ok(Counted {
            held,
            mappings: count,
        })
    }
}

/// How many mappings process `pid` has.
fn mappings(pid: u32) -> io::Result<u64> {
    let mut file = File::open(proc_file(pid, "maps"))?;
    let (mut text, mut count) = ([0; 65_536], 0);
    loop {
        match file.read(&mut text)? {
            0 => return Ok(count),
            length => count += text[..length].iter().filter(|&&byte| byte == b'\n').count() as u64,
        }
    }
}

/// The memory files whose names begin with `name` that process `pid` has open: the bytes that each occupies, by the number
/// of the file.
///
/// # Errors
/// When the process is gone or may not be read.
pub fn memory_files(pid: u32, name: &str) -> io::Result<BTreeMap<u64, u64>> {
    let (mut files, begin) = (BTreeMap::new(), format!("/memfd:{name}"));
    for entry in std::fs::read_dir(proc_file(pid, "fd"))? {
        let path = entry?.path();
        let is_memory = |to: PathBuf| to.as_os_str().as_bytes().starts_with(begin.as_bytes());
        // A descriptor that was closed meanwhile is none. Others are not looked at: a file on a server that does not
        // answer would be waited for.
        if std::fs::read_link(&path).is_ok_and(is_memory)
            && let Ok(file) = std::fs::metadata(&path)
        {
            files.insert(file.ino(), file.blocks().saturating_mul(512));
        }
    }
    Ok(files)
}

/// What the calling process holds, for those who ask often, also where nothing may be opened any more.
#[derive(Debug)]
pub struct OwnHeld(File);

impl OwnHeld {
    /// Opens this process's own account.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/status").map(Self)
    }

    /// Reads it anew.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn read(&self) -> io::Result<Held> {
        let mut text = [0; 8192];
        let length = self.0.read_at(&mut text, 0)?;
        Held::parse(&String::from_utf8_lossy(&text[..length]))
    }
}

fn proc_file(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// The bytes in the line `NAME: N kB`.
fn field(text: &str, name: &str) -> io::Result<u64> {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .map(|kib| kib * 1024)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the kernel reports no {name}"),
            )
        })
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    /// The kernel counts anonymous pages per CPU in batches: this is how far off it may be.
    const SLACK: u64 = 4 << 20;

    #[test]
    fn touched_memory_is_held_and_dropped_memory_is_not() {
        let before = Held::of(std::process::id()).unwrap();
        // The compiler may leave out memory that nothing looks at.
        let memory = black_box(vec![1_u8; 64 << 20]);
        let during = Held::of(std::process::id()).unwrap();
        assert!(
            during.anonymous + SLACK >= before.anonymous + memory.len() as u64,
            "{before:?} {during:?}"
        );
        drop(black_box(memory));
        let after = Held::of(std::process::id()).unwrap();
        assert!(
            after.anonymous <= during.anonymous - (60 << 20),
            "{during:?} {after:?}"
        );
    }

    #[test]
    fn a_process_reads_of_itself_what_others_read_of_it() {
        let own = OwnHeld::open().unwrap();
        own.read().unwrap();
        let (mine, theirs) = (own.read().unwrap(), Held::of(std::process::id()).unwrap());
        assert!(
            mine.anonymous.abs_diff(theirs.anonymous) <= 64 << 20,
            "{mine:?} {theirs:?}"
        );
        assert!(mine.anonymous > 0 && mine.page_tables > 0);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        // Beyond the largest pid the kernel can hand out.
        assert!(Held::of(u32::MAX).is_err());
        assert!(ProcessMemory::default().of(u32::MAX).is_err());
        assert!(memory_files(u32::MAX, "").is_err());
    }

    #[test]
    fn mappings_are_counted_now_and_then_and_within_an_allowance() {
        let own = std::process::id();
        let mut memory = ProcessMemory::default();
        assert_eq!(memory.of(own).unwrap().mappings, None, "nothing is allowed yet");
        memory.pass(Duration::from_secs(1));
        let first = memory.of(own).unwrap().mappings.unwrap();
        assert!(first > 10, "{first}");
        // A process of which the next count would be another is not counted again at once.
        memory.mappings.get_mut(&own).unwrap().count = Some(7);
        memory.pass(RECOUNT - Duration::from_millis(1));
        assert_eq!(memory.of(own).unwrap().mappings, Some(7));
        memory.pass(Duration::from_millis(1));
        assert!(memory.of(own).unwrap().mappings.unwrap() > 10);
        // Where the allowance is used up, the last count holds.
        memory.mappings.get_mut(&own).unwrap().count = Some(7);
        memory.allowance = -1e9;
        memory.pass(RECOUNT);
        assert_eq!(memory.of(own).unwrap().mappings, Some(7));
        memory.pass(FORGOTTEN);
        assert!(memory.mappings.is_empty());
    }

    #[test]
    fn a_memory_file_occupies_what_the_kernel_says() {
        let file = rustix::fs::memfd_create("levy-memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 3 * 4096], 8 << 20).unwrap();
        let files = memory_files(std::process::id(), "levy-mem").unwrap();
        let number = file.metadata().unwrap().ino();
        assert_eq!(files.get(&number), Some(&(3 * 4096)), "{files:?}");
        let others = memory_files(std::process::id(), "levy-pool").unwrap();
        assert!(!others.contains_key(&number), "{others:?}");
        let other = tempfile::tempfile().unwrap();
        other.write_all_at(&[1; 4096], 0).unwrap();
        let number = other.metadata().unwrap().ino();
        let files = memory_files(std::process::id(), "").unwrap();
        assert!(!files.contains_key(&number), "{files:?}");
    }
}
