//! What the processes are told to be.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use levy_protocol::link::VERSION;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::memory::{PAGE, Pages};
use crate::process;
use crate::protocol::ProtocolOptions;
use crate::relay::RelayOptions;

/// What a process is.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// A manager, as `levy host` is one.
    Host(Box<levy::cli::HostArgs>),
    /// A guest's process without a guest.
    Guest(Box<GuestOptions>),
    /// A guest's process that only talks.
    Protocol(ProtocolOptions),
    /// A process that asks a manager for others.
    Relay(RelayOptions),
}

/// The arguments of a program that is nothing else.
#[derive(clap::Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

impl Command {
    /// Runs what this process's arguments say, to the end.
    pub fn run_arguments() -> ExitCode {
        <Arguments as clap::Parser>::parse().command.run()
    }

    /// Runs to the end.
    pub fn run(self) -> ExitCode {
        match self {
            Self::Host(args) => {
                // Guests end with their input; a manager reads none.
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
                ExitCode::from(args.run())
            }
            Self::Guest(options) => process::run(&options),
            Self::Protocol(options) => options.run(),
            Self::Relay(options) => {
                let _ = set_parent_process_death_signal(Some(Signal::KILL));
                options.run()
            }
        }
    }
}

/// A guest to be.
#[derive(Debug, Clone, clap::Args)]
pub struct GuestOptions {
    /// Run directory of its manager.
    #[arg(long, default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Its name.
    #[arg(long)]
    pub(crate) name: String,
    /// Memory, MiB.
    #[arg(long, default_value_t = 16)]
    pub(crate) mib: u64,
    /// Guaranteed memory, MiB.
    #[arg(long, default_value_t = 2)]
    pub(crate) min_mib: u64,
    /// With whom it shares pages.
    #[arg(long, default_value = "simulated")]
    pub(crate) domain: String,
    /// Guests with the same seed have the same pages.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// No page is like another one, not even zeros.
    #[arg(long)]
    pub(crate) all_different: bool,
    /// Threads that write.
    #[arg(long, default_value_t = 2)]
    pub(crate) writers: usize,
    /// Pages that each of them visits in a second.
    #[arg(long, default_value_t = 2000)]
    pub(crate) rate: u64,
    /// Folder for the swap file.
    #[arg(long, default_value = "/var/tmp")]
    pub(crate) swap: PathBuf,
    /// Its memory is filled only when its manager limits it, not before.
    #[arg(long)]
    pub(crate) late_fill: bool,
    /// The newest version of the protocol that it speaks.
    #[arg(long, default_value_t = VERSION)]
    pub(crate) protocol: u32,
    /// Its process locks all memory that it maps, so that it cannot be managed.
    #[arg(long)]
    pub(crate) locked: bool,
}

impl GuestOptions {
    /// A guest of 16 MiB that is guaranteed 2, whose two threads visit 2000 pages a second each.
    pub fn new(name: &str) -> Self {
        Self {
            dir: PathBuf::from("."),
            name: name.to_owned(),
            mib: 16,
            min_mib: 2,
            domain: "simulated".into(),
            seed: 1,
            all_different: false,
            writers: 2,
            rate: 2000,
            swap: "/var/tmp".into(),
            late_fill: false,
            protocol: VERSION,
            locked: false,
        }
    }

    /// The same under another name.
    pub fn named(self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self
        }
    }

    /// Its memory, MiB.
    pub fn mib(self, mib: u64) -> Self {
        Self { mib, ..self }
    }

    /// Its guaranteed memory, MiB.
    pub fn min_mib(self, min_mib: u64) -> Self {
        Self { min_mib, ..self }
    }

    /// Which pages it has: guests with the same seed have the same.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// A guest in which no page is like another one.
    pub fn all_different(self) -> Self {
        Self {
            all_different: true,
            ..self
        }
    }

    /// Visits of each writer in a second; 0 leaves the memory alone.
    pub fn rate(self, rate: u64) -> Self {
        Self { rate, ..self }
    }

    /// The folder for its swap file.
    pub fn swap(self, swap: impl Into<PathBuf>) -> Self {
        Self {
            swap: swap.into(),
            ..self
        }
    }

    /// The run directory of its manager.
    pub fn under(self, dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            ..self
        }
    }

    /// A guest that touches its memory only when its manager limits it, as a booting one does.
    pub fn late_fill(self) -> Self {
        Self {
            late_fill: true,
            ..self
        }
    }

    /// A guest of an older program, which speaks no newer version of the protocol than `protocol`.
    pub fn of_version(self, protocol: u32) -> Self {
        Self { protocol, ..self }
    }

    /// A guest whose memory cannot be managed: its process locks all that it maps.
    #[must_use]
    pub fn locked(self) -> Self {
        Self { locked: true, ..self }
    }

    /// What its memory holds in the beginning.
    pub fn contents(&self) -> Vec<u8> {
        let pages = self.pages();
        (0..pages.count).flat_map(|page| pages.bytes(page)).collect()
    }

    pub(crate) fn pages(&self) -> Pages {
        Pages {
            count: (self.mib << 20) / PAGE,
            seed: self.seed,
            all_different: self.all_different,
        }
    }

    /// Arguments of [`Command`] that make a process this guest.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args = vec!["guest".into()];
        let mut push = |option: &str, value: OsString| args.extend([option.into(), value]);
        push("--dir", self.dir.clone().into());
        push("--name", self.name.clone().into());
        push("--mib", self.mib.to_string().into());
        push("--min-mib", self.min_mib.to_string().into());
        push("--domain", self.domain.clone().into());
        push("--seed", self.seed.to_string().into());
        push("--writers", self.writers.to_string().into());
        push("--rate", self.rate.to_string().into());
        push("--swap", self.swap.clone().into());
        push("--protocol", self.protocol.to_string().into());
        if self.all_different {
            args.push("--all-different".into());
        }
        if self.late_fill {
            args.push("--late-fill".into());
        }
        if self.locked {
            args.push("--locked".into());
        }
        args
    }
}
