//! `levy vmm`: one guest in this process.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::boot::BootFiles;
use crate::config::{
    self, BalloonConfig, CpusConfig, DiskConfig, GuestConfig, ManagedConfig, MemoryConfig, NetConfig,
    SerialConfig, SharingOption,
};
use crate::confine;
use crate::doctor;
use crate::link::GroupLimits;
use crate::machine::Outcome;
use crate::process::{self, Report, ReportStyle, SocketFile};
use crate::supervisor::{Event, Machine, SetupError, Supervisor};
use crate::{control, machine};

/// What every guest gets on its command line before anything else: a console, no chatter (each byte of it costs an
/// exit), a restart that reaches us, an end instead of a hang after a panic, and no needless zeroing of pages, which
/// would make a balloon ten times slower.
const DEFAULT_CMDLINE: &str = "console=ttyS0 quiet pci=off reboot=k panic=-1 init_on_alloc=0";

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
    #[arg(long, default_value = "guest")]
    name: String,
    /// Where the guest's console goes: stdio, null, or file=PATH
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
    /// The guest hangs if its agent is not ready by then, counted from the start of this process (60s, 2m)
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    deadline: Option<Duration>,
    /// How to tell about the guest: text on stderr, or JSON lines on stdout (not together with --serial stdio)
    #[arg(long, value_enum, default_value = "text")]
    events: ReportStyle,
    /// End when this process is no longer our parent
    #[arg(long, hide = true)]
    parent: Option<u32>,
    /// The launcher has found out already that this KVM runs kernels
    #[arg(long, hide = true)]
    kvm_checked: bool,
}

/// The options that describe a guest, shared by `levy vmm` and `levy run`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GuestArgs {
    /// Linux kernel, a 64-bit bzImage (what /boot/vmlinuz-* is)
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// Initramfs for the kernel
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// More words for the kernel's command line, behind Levy's own
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub(crate) cmdline: String,
    /// Guest memory: size=512M[,min=128M][,shares=low|normal|high|N]. The guest always gets min (a quarter of its size
    /// unless given); shares are its right to the rest beside other guests. mergeable=on leaves the memory to the
    /// kernel's same-page merging (KSM) and unmanaged, for comparisons: all of it is reserved then, as with min=size, and
    /// it needs --sharing mode=off
    #[arg(long, value_name = "size=SIZE,...", default_value = "size=512M")]
    pub(crate) memory: MemoryConfig,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) cpus: CpusConfig,
    /// A disk, a raw image: path=FILE[,readonly=on][,overlay=on][,latency=5ms]. With overlay=on the guest writes to a
    /// private layer that is gone afterwards, and any number of guests can share the file. Repeatable
    #[arg(long, value_name = "path=FILE,...")]
    pub(crate) disk: Vec<DiskConfig>,
    /// A network card on a tap: tap=NAME[,create=on][,mac=..][,host=ADDR/LEN][,guest=ADDR/LEN]. Repeatable
    #[arg(long, value_name = "tap=NAME,...")]
    pub(crate) net: Vec<NetConfig>,
    /// The balloon: [size=64M][,deflate_on_oom=on|off][,free_page_reporting=on|off][,stats_polling_interval=1s]. By
    /// default it is empty, reports free pages and gives memory back before the guest kills a process
    #[arg(
        long,
        value_name = "size=SIZE,...",
        default_value_t,
        hide_default_value = true
    )]
    pub(crate) balloon: BalloonConfig,
    /// With whom equal pages are shared: with the guests of the same launch, mode=on,domain=NAME with all guests that
    /// name the domain, mode=off with nobody. With hints=off reads of disks that guests share do not say what to look at
    /// first
    #[arg(long, value_name = "mode=on|off,...", default_value = "mode=on")]
    pub(crate) sharing: SharingOption,
    /// The group that the guest claims memory with: name=web[,shares=low|normal|high|N][,min=SIZE][,max=SIZE]. The first
    /// guest that names a group brings its limits along; the members divide what the group gets
    #[arg(long, value_name = "name=NAME,...")]
    pub(crate) group: Option<GroupLimits>,
    /// Folder for the guest's swap file, which has no name and is gone when the guest ends
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub(crate) swap: PathBuf,
    /// Whether the guest's process is confined to the system calls that a running guest needs: on, off, or log, which
    /// carries forbidden ones out and notes them in the kernel's log
    #[arg(long, value_name = "on|off|log", default_value_t)]
    pub(crate) confine: confine::Mode,
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
    #[error("--kernel is missing; give a 64-bit bzImage, or use `levy run`, which brings its own")]
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
    Socket(#[from] process::SocketError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Confine(#[from] confine::ConfineError),
}

impl VmmArgs {
    /// Runs the guest to its end; the exit status of the process.
    pub fn run(self) -> u8 {
        let began = Instant::now();
        process::log_to_stderr(&self.name);
        let mut report = Report::new(&self.name, self.events);
        match self.run_guest(began, &mut report) {
            Ok(outcome) => {
                report.ended(&outcome);
                outcome.status()
            }
            Err(error) => {
                report.failed(&error);
                1
            }
        }
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
        process::raise_open_files();
        confine::begin(self.guest.confine, sockets)?;
        if let Err(error) = confine::prefer_as_victim() {
            log::debug!("memory shortage: {error}");
        }
        let checked = self.kvm_checked;
        let config = self.config()?;
        machine::open_kvm().map_err(SetupError::Host)?;
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
        let _control = match &config.control {
            Some(path) => {
                let (file, listener) = SocketFile::bind(path)?;
                control::serve(listener, events).map_err(VmmError::Process)?;
                Some(file)
            }
            None => None,
        };
        confine::finish()?;
        Ok(Supervisor::new(machine, heard, report, began).run(config.deadline))
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
                group: self.guest.group,
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

impl GuestArgs {
    /// The options as `levy vmm` takes them.
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let mut args = Vec::new();
        let mut push = |option: &str, value: OsString| args.extend([option.into(), value]);
        for (option, file) in [("--kernel", &self.kernel), ("--initrd", &self.initrd)] {
            if let Some(file) = file {
                push(option, file.into());
            }
        }
        push("--memory", self.memory.to_string().into());
        push("--cpus", self.cpus.count.to_string().into());
        self.disk
            .iter()
            .for_each(|disk| push("--disk", disk.to_string().into()));
        self.net
            .iter()
            .for_each(|net| push("--net", net.to_string().into()));
        push("--balloon", self.balloon.to_string().into());
        push("--sharing", self.sharing.to_string().into());
        push("--swap", self.swap.clone().into());
        if let Some(group) = &self.group {
            push("--group", group.to_string().into());
        }
        push("--confine", self.confine.to_string().into());
        // With `=`, since words of the kernel's may begin with a dash.
        args.push(format!("--cmdline={}", self.cmdline).into());
        args
    }

    fn full_cmdline(&self) -> String {
        let mut words = vec![DEFAULT_CMDLINE.to_owned()];
        words.extend(
            self.net
                .iter()
                .enumerate()
                .filter_map(|(card, net)| net.kernel_words(card)),
        );
        if !self.cmdline.is_empty() {
            words.push(self.cmdline.clone());
        }
        words.join(" ")
    }
}

/// A KVM that emulates in software takes every ioctl and then dies in the middle of the kernel's boot.
fn check_host() -> Result<(), VmmError> {
    match doctor::Machine::probe() {
        found if found.runs_kernels() => Ok(()),
        found => Err(VmmError::NoKernelsHere(found)),
    }
}
