//! What can a VMM process still do once its guest runs? Only what the guest's life needs.
//!
//! After set-up every thread runs under a seccomp filter that lists its system calls ([`Role`], [`rules`](self)), with
//! no-new-privs. Nothing on the lists opens a file, starts a process or a program, changes modes or seals, traces
//! another process, or maps memory that can be executed. So a process that was taken over by its guest cannot, above
//! all, open its read-only pool of common pages a second time for writing.
//!
//! A forbidden call is not carried out: the kernel raises SIGSYS, whose handler names thread and call on standard
//! error and ends the process.
//!
//! # Order
//! [`begin`] before the first thread starts; [`enter`] first thing on each thread; [`finish`] on the main thread when
//! everything is open and before the guest runs: it sees to it that no thread was forgotten.
//! Where [`begin`] was not called (the manager, tests), [`enter`] does nothing.

mod filter;
mod last_words;
mod limits;
mod names;
mod peer;
mod role;
mod rules;
#[cfg(test)]
mod tests;
mod trap;

use std::io;
use std::str::FromStr;
use std::sync::OnceLock;

use filter::Filters;
use levy_member::{OwnThread, Threads};
use page_share::{RegionThread, ThreadStarted};

pub use role::Role;
pub use trap::note_role;

/// How strict confinement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// A forbidden system call ends the process.
    #[default]
    On,
    /// Nothing is confined.
    Off,
    /// A forbidden system call is carried out, and is in the kernel's log: for finding out what a thread needs.
    Log,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            "log" => Ok(Self::Log),
            _ => Err("write on, off or log".to_owned()),
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Log => "log",
        })
    }
}

/// Why a process cannot be confined.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum ConfineError {
    /// The kernel refuses a step.
    #[error("the kernel refuses to {step} for this VMM; --confine off runs it unconfined")]
    Refused {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// A table of rules that is none.
    #[error("the rules for {role} do not make a filter: {what}")]
    Rules { role: &'static str, what: String },
    /// A thread that was not confined.
    #[error("threads {threads} are not confined; this is a mistake in levy, --confine off gets around it")]
    Forgotten { threads: String },
}

/// Whether the process removes its sockets' files at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sockets {
    /// The launcher removes them, so that nothing here may remove files.
    Theirs,
    /// It was started by hand: its main thread keeps unlink(2).
    Ours,
}

/// The filters of this process, once it is to be confined.
static FILTERS: OnceLock<Filters> = OnceLock::new();

/// From now on threads that [`enter`] are confined. Call before any thread is started.
///
/// # Errors
/// When the filters cannot be made.
pub fn begin(mode: Mode, sockets: Sockets) -> Result<(), ConfineError> {
    if mode == Mode::Off {
        return Ok(());
    }
    let filters = Filters::compile(mode, sockets)?;
    // Has rustix look for the vDSO, for which on old kernels it must open a file.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    trap::settle_allocator();
    last_words::of_panics();
    trap::install().map_err(|source| ConfineError::Refused {
        step: "set the handlers of signals",
        source,
    })?;
    // A second call would find the first one's filters, which hold anyway.
    let _ = FILTERS.set(filters);
    Ok(())
}

/// Confines the calling thread to what `role` needs, for the rest of its life and for all threads that it starts.
///
/// A thread that cannot be confined ends the process.
pub fn enter(role: Role) {
    let Some(filters) = FILTERS.get() else { return };
    note_role(role);
    if let Err(error) = filters.apply(role) {
        last_words::say(&format!(
            "levy: thread {} cannot be confined: {error}",
            role.name()
        ));
        std::process::abort();
    }
}

/// Whether this process is to remove its sockets' files.
pub fn removes_sockets() -> bool {
    FILTERS
        .get()
        .is_none_or(|filters| filters.sockets() == Sockets::Ours)
}

/// What the library that manages the guest's memory calls when it starts a thread.
pub fn member_threads() -> Threads {
    let own = |thread| {
        enter(match thread {
            OwnThread::ManagerClient => Role::ManagerClient,
            OwnThread::LimitController => Role::LimitController,
        });
    };
    Threads {
        region: region_threads(),
        own: Some(own),
    }
}

fn region_threads() -> ThreadStarted {
    ThreadStarted(Some(|thread| {
        enter(match thread {
            RegionThread::FaultHandler => Role::FaultHandler,
            RegionThread::SwapIns => Role::SwapIns,
            RegionThread::Scanner => Role::Scanner,
        });
    }))
}

/// Closes the doors: the process can be looked at by root only and dumps no core, needs no more descriptors, and every
/// thread is confined, the calling one as [`Role::Main`].
///
/// # Errors
/// When the kernel refuses, or a thread was forgotten.
pub fn finish() -> Result<(), ConfineError> {
    if FILTERS.get().is_none() {
        return Ok(());
    }
    limits::close_process()?;
    limits::check_threads()?;
    enter(Role::Main);
    Ok(())
}

pub use limits::prefer_as_victim;
pub(crate) use peer::is_welcome;
