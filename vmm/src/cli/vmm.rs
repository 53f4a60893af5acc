//! `levy vmm`: one guest in this process.

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::doctor;
use levy_launcher::GuestArgs;
use levy_machine::boot::BootFiles;
use levy_machine::config::{self, GuestConfig, ManagedConfig, SerialConfig};
use levy_machine::event::Event;
use levy_machine::process::{self, Report, ReportStyle};
use levy_machine::supervisor::{Machine, SetupError, Supervisor};
use levy_machine::{confine, control, vm};
use levy_protocol::outcome::Outcome;
use levy_protocol::socket::{SocketError, SocketFile};

const EXAMPLES: &str = "\
Options with several parts are written key=value,key=on|off.

Examples:
  levy vmm --kernel bzImage --initrd initrd.img --memory size=512M --cpus 2
  levy vmm --kernel bzImage --initrd initrd.img --disk path=root.img,overlay=on \\
           --net tap=levy0,create=on,host=10.0.3.1/24,guest=10.0.3.2/24
  levy vmm ... --agent path.sock --control ctl.sock --deadline 60s

Exit status:
  0  switched off, stopped or taken down on request     4  kernel panic
  1  could not start, the message says why               5  hang: not ready by the deadline
  2  wrong usage                                         6  crash: a vCPU could not go on
  3  the guest asked for a restart                       130  ended by a signal before it started";

/// Run one guest in this process.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct VmmArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// A name for messages
    #[arg(long, default_value = "guest", value_parser = config::guest_name)]
    name: String,
    /// Where the guest's console goes: stdio, null, or file=PATH, which keeps the newest MiB
    #[arg(long, default_value = "stdio", value_name = "stdio|null|file=PATH")]
    serial: SerialConfig,
    /// Unix socket on which the guest's agent can be talked to, one JSON object per line
    #[arg(long, value_name = "SOCKET", value_parser = path_option)]
    agent: Option<PathBuf>,
    /// Unix socket on which this VMM takes requests, such as {"do":"status"}
    #[arg(long, value_name = "SOCKET", value_parser = path_option)]
    control: Option<PathBuf>,
    /// Run directory of the manager (`levy host`) that this guest's memory is managed by; without one it is left alone
    #[arg(long, value_name = "DIR")]
    manager: Option<PathBuf>,
    /// The fleet file that this guest is of
    #[arg(long, hide = true)]
    fleet: Option<String>,
    /// Treat the guest as hung if its agent is not ready within TIME of the start of this process (60s, 2m)
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    deadline: Option<Duration>,
    /// How to report on the guest: text on stderr, or JSON lines on stdout (not together with --serial stdio)
    #[arg(long, value_enum, default_value = "text")]
    events: ReportStyle,
    /// End when this process is no longer our parent
    #[arg(long, hide = true)]
    parent: Option<u32>,
    /// The launcher has found out already that this KVM runs kernels
    #[arg(long, hide = true)]
    kvm_checked: bool,
}

/// `path=FILE` or `FILE`.
fn path_option(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("path=").unwrap_or(text);
    if path.is_empty() {
        return Err("give a path".to_owned());
    }
    Ok(path.into())
}

/// What went wrong before the guest ran.
#[derive(Debug, thiserror::Error)]
enum VmmError {
    #[error(
        "--events json needs standard output for itself; send the console elsewhere with --serial file=PATH"
    )]
    StdoutTaken,
    #[error("--kernel is missing; give a 64-bit bzImage or vmlinux, or use `levy run`, which brings its own")]
    NoKernel,
    #[error(
        "--memory mergeable=on has the kernel merge pages; add --sharing mode=off, so that Levy does not"
    )]
    MergedTwice,
    #[error("{0}")]
    NoKernelsHere(doctor::Machine),
    #[error("the host cannot start this process properly")]
    Process(#[source] std::io::Error),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Confine(#[from] confine::ConfineError),
}

impl VmmArgs {
    /// Runs the guest to its end; the exit status of the process.
    pub fn run(self) -> u8 {
        let began = Instant::now();
        let mut report = Report::new(&self.name, self.events);
        let status = match self.run_guest(began, &mut report) {
            Ok(outcome) => {
                report.ended(&outcome);
                outcome.status()
            }
            Err(error) => {
                report.failed(&error);
                1
            }
        };
        process::settle();
        status
    }

    fn run_guest(self, began: Instant, report: &mut Report) -> Result<Outcome, VmmError> {
        if self.events == ReportStyle::Json && self.serial == SerialConfig::Stdio {
            return Err(VmmError::StdoutTaken);
        }
        let signals = process::block_end_signals().map_err(VmmError::Process)?;
        if let Some(parent) = self.parent {
            process::die_with(parent).map_err(VmmError::Process)?;
        }
        let sockets = match self.parent {
            Some(_) => confine::Sockets::Theirs,
            None => confine::Sockets::Ours,
        };
        levy_protocol::raise_open_files();
        confine::begin(self.guest.confine, sockets)?;
        process::log_to_stderr(&self.name, &signals).map_err(VmmError::Process)?;
        if let Err(error) = confine::prefer_as_victim() {
            log::debug!("memory shortage: {error}");
        }
        let checked = self.kvm_checked;
        let config = self.config()?;
        vm::open_kvm().map_err(SetupError::Host)?;
        let (events, heard) = channel();
        // Everything about the files is checked before the host is, so that the cheaper mistake shows first.
        let machine = Machine::build(&config, &events)?;
        if !checked {
            check_host()?;
        }
        if config.serial == SerialConfig::Stdio {
            let serial = machine.devices.handles.serial.clone();
            process::forward_stdin(move |bytes| serial.send(bytes)).map_err(VmmError::Process)?;
        }
        let ended = events.clone();
        signals
            .watch(move |name| {
                let _ = ended.send(Event::Signal(name));
            })
            .map_err(VmmError::Process)?;
        let control = match &config.control {
            Some(path) => {
                let (mut file, listener) = SocketFile::bind(path)?;
                if !confine::removes_sockets() {
                    file.leave_to_starter();
                }
                let unanswered = control::serve(listener, events).map_err(VmmError::Process)?;
                Some((file, unanswered))
            }
            None => None,
        };
        confine::finish()?;
        let outcome = Supervisor::new(machine, heard, report, began).run(config.deadline);
        if let Some((_file, unanswered)) = control {
            unanswered.settle();
        }
        Ok(outcome)
    }

    fn config(self) -> Result<GuestConfig, VmmError> {
        if self.guest.memory.mergeable && self.guest.sharing.with != config::SharingConfig::Off {
            return Err(VmmError::MergedTwice);
        }
        let kernel = self.guest.kernel.clone().ok_or(VmmError::NoKernel)?;
        Ok(GuestConfig {
            boot: BootFiles {
                kernel,
                initrd: self.guest.initrd.clone(),
                cmdline: self.guest.full_cmdline(),
            },
            name: self.name,
            memory: self.guest.memory,
            cpus: self.guest.cpus,
            disks: self.guest.disk,
            nets: self.guest.net,
            balloon: Some(self.guest.balloon),
            managed: self.manager.map(|manager| ManagedConfig {
                manager,
                sharing: self.guest.sharing.with,
                hints: self.guest.sharing.hints,
                group: self.guest.group.map(|group| group.0),
                fleet: self.fleet,
                swap: Some(self.guest.swap),
            }),
            serial: self.serial,
            agent: self.agent,
            control: self.control,
            deadline: self.deadline,
        })
    }
}

/// A KVM that emulates in software takes every ioctl and then dies in the middle of the kernel's boot.
fn check_host() -> Result<(), VmmError> {
    match doctor::Machine::probe() {
        found if found.runs_kernels() => Ok(()),
        found => Err(VmmError::NoKernelsHere(found)),
    }
}
