//! System calls that fail in a process from its first moment on.

use std::collections::BTreeMap;

use anyhow::Context;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Bits of an address that decide whether a call on it fails: it does for one page in four.
const SOME_PAGES: u64 = 0x3000;

/// What is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Refusal {
    /// A swap file cannot grow and a pool's pages cannot be given back: fallocate, ENOSPC.
    Room,
    /// Nothing is written at a place in a file: pwrite64, EIO.
    Writing,
    /// No file is mapped over one page in four: mmap, ENOMEM.
    Mapping,
    /// Nothing is moved onto one page in four: mremap, ENOMEM.
    Moving,
}

/// What may be refused to a guest's process.
pub(crate) const OF_GUESTS: [Refusal; 4] =
    [Refusal::Room, Refusal::Writing, Refusal::Mapping, Refusal::Moving];

/// What may be refused to a manager. Mapping is left out: its program is loaded by it.
pub(crate) const OF_MANAGERS: [Refusal; 2] = [Refusal::Room, Refusal::Writing];

impl Refusal {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Room => "room",
            Self::Writing => "writing",
            Self::Mapping => "mapping",
            Self::Moving => "moving",
        }
    }

    fn call(self) -> (i64, i32) {
        match self {
            Self::Room => (libc::SYS_fallocate, libc::ENOSPC),
            Self::Writing => (libc::SYS_pwrite64, libc::EIO),
            Self::Mapping => (libc::SYS_mmap, libc::ENOMEM),
            Self::Moving => (libc::SYS_mremap, libc::ENOMEM),
        }
    }

    fn conditions(self) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        use SeccompCmpArgLen::{Dword, Qword};
        use SeccompCmpOp::{MaskedEq, Ne};
        let fixed = u64::from(libc::MAP_FIXED.unsigned_abs());
        let conditions = match self {
            Self::Room | Self::Writing => return Ok(Vec::new()),
            Self::Mapping => vec![
                SeccompCondition::new(0, Qword, MaskedEq(SOME_PAGES), 0)?,
                SeccompCondition::new(3, Dword, MaskedEq(fixed), fixed)?,
                // Memory without a file has this in the place of one.
                SeccompCondition::new(4, Dword, Ne, u64::from(u32::MAX))?,
            ],
            Self::Moving => vec![SeccompCondition::new(4, Qword, MaskedEq(SOME_PAGES), 0)?],
        };
        Ok(vec![SeccompRule::new(conditions)?])
    }

    /// Refuses it to the calling thread, the threads that it starts, and what it executes.
    pub(crate) fn apply(self) -> anyhow::Result<()> {
        let (call, errno) = self.call();
        let filter = SeccompFilter::new(
            BTreeMap::from([(call, self.conditions()?)]),
            SeccompAction::Allow,
            SeccompAction::Errno(errno.unsigned_abs()),
            TargetArch::x86_64,
        )?;
        let program: seccompiler::BpfProgram = filter.try_into()?;
        seccompiler::apply_filter(&program).with_context(|| format!("cannot refuse {}", self.name()))
    }
}
