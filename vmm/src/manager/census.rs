//! What a process holds of the machine's memory, as the kernel counts it.
//!
//! [`Held`] is cheap and exact enough to enforce a budget by, once a second: anonymous pages and page tables, both
//! counted by the kernel as they come and go. Guest RAM that nobody shares is anonymous, so are pages that a
//! copy-on-write break made private again; pages of a pool are not, so a pool is counted once, by its file. What a
//! person wants to know, private and proportional size, each VMM says of itself ([`crate::supervisor::Footprint`]).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

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
    use super::*;

    /// The kernel counts anonymous pages per CPU in batches: this is how far off it may be.
    const SLACK: u64 = 4 << 20;

    #[test]
    fn touched_memory_is_held_and_dropped_memory_is_not() {
        let before = Held::of(std::process::id()).unwrap();
        let memory = vec![1_u8; 64 << 20];
        let during = Held::of(std::process::id()).unwrap();
        assert!(
            during.anonymous + SLACK >= before.anonymous + memory.len() as u64,
            "{before:?} {during:?}"
        );
        drop(memory);
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
    }
}
