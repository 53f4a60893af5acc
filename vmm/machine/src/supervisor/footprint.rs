//! What a guest costs the host, from the kernel's own books.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};

use serde::Serialize;

use crate::memory::RamRegion;

/// Sizes in KiB. RSS cannot show sharing, so there are private and proportional sizes too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Guest memory as configured.
    pub guest_kib: u64,
    /// Guest memory that is present.
    pub guest_rss_kib: u64,
    /// Guest memory that no other process has.
    pub guest_private_kib: u64,
    /// Guest memory, shared pages divided by the number of those who share them.
    pub guest_pss_kib: u64,
    /// Private memory of the VMM process outside guest memory and the pool.
    pub vmm_private_kib: u64,
    /// The same, shared pages divided.
    pub vmm_pss_kib: u64,
}

/// The kernel's list of this process's mappings, opened while the process could still open files.
#[derive(Debug)]
pub struct Smaps(File);

impl Smaps {
    /// Opens it.
    ///
    /// # Errors
    /// When there is no /proc.
    pub fn open() -> io::Result<Self> {
        File::open("/proc/self/smaps").map(Self)
    }

    /// From its first line on. A guest that shares has thousands of mappings: the whole text at once would be tens of
    /// MiB, which the allocator keeps and a later look counts as ours.
    fn lines(&self) -> io::Result<impl BufRead> {
        (&self.0).rewind()?;
        Ok(BufReader::with_capacity(PIECE, &self.0))
    }
}

impl Footprint {
    /// The footprint of this process, whose guest's memory is `regions`.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn measure(smaps: &Smaps, regions: &[RamRegion]) -> io::Result<Self> {
        let ranges: Vec<_> = regions
            .iter()
            .map(|r| (r.host as u64, r.host as u64 + r.frames.pages * 4096))
            .collect();
        Self::from_smaps(smaps.lines()?, &ranges)
    }

    fn from_smaps(mut smaps: impl BufRead, guest: &[(u64, u64)]) -> io::Result<Self> {
        let mut sum = Self {
            guest_kib: guest.iter().map(|(start, end)| (end - start) >> 10).sum(),
            ..Self::default()
        };
        let mut part = Part::Vmm;
        let mut line = String::new();
        while smaps.read_line(&mut line)? > 0 {
            if let Some(start) = mapping_start(&line) {
                part = match () {
                    () if guest.iter().any(|&(from, to)| (from..to).contains(&start)) => Part::Guest,
                    () if line.contains(POOL) => Part::PoolView,
                    () => Part::Vmm,
                };
            } else if let Some((name, kib)) = field(&line) {
                sum.add(part, name, kib);
            }
            line.clear();
        }
        Ok(sum)
    }

    fn add(&mut self, part: Part, name: &str, kib: u64) {
        match (part, name) {
            (Part::Guest, "Rss") => self.guest_rss_kib += kib,
            // A common copy is mapped twice by everyone who shares it: in the guest, and where it is compared.
            (Part::Guest | Part::PoolView, "Pss") => self.guest_pss_kib += kib,
            (Part::Guest, "Private_Clean" | "Private_Dirty") => self.guest_private_kib += kib,
            (Part::Vmm, "Pss") => self.vmm_pss_kib += kib,
            (Part::Vmm, "Private_Clean" | "Private_Dirty") => self.vmm_private_kib += kib,
            _ => {}
        }
    }
}

/// Bytes of the kernel's list read at a time.
const PIECE: usize = 64 << 10;

/// The name of a sharing domain's memory in /proc.
const POOL: &str = "/memfd:levy-pool";

/// What a mapping is for.
#[derive(Clone, Copy)]
enum Part {
    /// The guest's memory.
    Guest,
    /// The whole pool, for comparing with it: memory that belongs to the sharing domain.
    PoolView,
    /// The VMM itself.
    Vmm,
}

/// `7f12a000-7f12b000 rw-p …`
fn mapping_start(line: &str) -> Option<u64> {
    let (range, _) = line.split_once(' ')?;
    let (start, _) = range.split_once('-')?;
    u64::from_str_radix(start, 16).ok()
}

/// `Rss:    12 kB`
fn field(line: &str) -> Option<(&str, u64)> {
    let (name, rest) = line.split_once(':')?;
    Some((name, rest.trim().strip_suffix(" kB")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_vmm_are_told_apart_by_address() {
        let smaps = "\
1000-2000 rw-p 00000000 00:00 0 [heap]
Rss:                   8 kB
Pss:                   6 kB
Private_Clean:         1 kB
Private_Dirty:         4 kB
7000-9000 rw-p 00000000 00:00 0
Rss:                 100 kB
Pss:                  90 kB
Private_Dirty:        80 kB
VmFlags: rd wr dc
a000-b000 r--s 00000000 00:01 7 /memfd:levy-pool (deleted)
Rss:                  40 kB
Pss:                  20 kB
Private_Clean:        30 kB
";
        let sum = Footprint::from_smaps(smaps.as_bytes(), &[(0x7000, 0x9000)]).unwrap();
        assert_eq!(
            (sum.guest_kib, sum.guest_rss_kib, sum.guest_private_kib),
            (8, 100, 80)
        );
        assert_eq!((sum.vmm_private_kib, sum.vmm_pss_kib), (5, 6));
        assert_eq!(sum.guest_pss_kib, 90 + 20, "its share of the common copies");
    }
}
