//! The options that describe a guest, as they are typed and as they are passed on.
// The comments on fields are help texts, in which brackets hold what may be left out.
#![allow(rustdoc::broken_intra_doc_links)]

use std::ffi::OsString;
use std::path::PathBuf;

use levy_machine::config::{
    BalloonConfig, CpusConfig, DiskConfig, GroupOption, MemoryConfig, NetConfig, SharingOption,
};
use levy_machine::confine;

/// What every guest gets on its command line before anything else: a console, no chatter (each byte of it costs an
/// exit), a restart that reaches us, an end instead of a hang after a panic, and no needless zeroing of pages, which
/// would make a balloon ten times slower.
const DEFAULT_CMDLINE: &str = "console=ttyS0 quiet pci=off reboot=k panic=-1 init_on_alloc=0";

/// The options that describe a guest, shared by `levy vmm` and `levy run`.
#[derive(Clone, Debug, clap::Args)]
pub struct GuestArgs {
    /// Linux kernel of 64 bits: a bzImage (what /boot/vmlinuz-* is), or the vmlinux it was made from, which boots sooner
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initramfs for the kernel
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// More words for the kernel's command line, behind Levy's own
    #[arg(long, value_name = "WORDS", default_value = "")]
    pub cmdline: String,
    /// Guest memory: size=512M[,min=128M][,shares=low|normal|high|N]. The guest always gets min (a quarter of its size
    /// unless given); shares are its right to the rest relative to other guests. mergeable=on leaves the memory to the
    /// kernel's same-page merging (KSM) and unmanaged, for comparisons: all of it is reserved then, as with min=size, and
    /// it needs --sharing mode=off
    #[arg(long, value_name = "size=SIZE,...", default_value = "size=512M")]
    pub memory: MemoryConfig,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value = "1")]
    pub cpus: CpusConfig,
    /// A disk, a raw image: path=FILE[,readonly=on][,overlay=on][,latency=5ms]. With overlay=on the guest writes to a
    /// private layer that is gone afterwards, and any number of guests can share the file. Repeatable
    #[arg(long, value_name = "path=FILE,...")]
    pub disk: Vec<DiskConfig>,
    /// A network card on a tap: tap=NAME[,create=on][,mac=..][,host=ADDR/LEN][,guest=ADDR/LEN]. Repeatable
    #[arg(long, value_name = "tap=NAME,...")]
    pub net: Vec<NetConfig>,
    /// The balloon: [size=64M][,deflate_on_oom=on|off][,free_page_reporting=on|off][,stats_polling_interval=1s]. By
    /// default it is empty, reports free pages and gives memory back before the guest kills a process
    #[arg(
        long,
        value_name = "size=SIZE,...",
        default_value_t,
        hide_default_value = true
    )]
    pub balloon: BalloonConfig,
    /// With whom equal pages are shared: with the guests of the same launch, mode=on,domain=NAME with all guests that
    /// name the domain, mode=off with none. hints=off: do not scan pages read from shared disks first
    #[arg(long, value_name = "mode=on|off,...", default_value = "mode=on")]
    pub sharing: SharingOption,
    /// The group that the guest claims memory with: name=web[,shares=low|normal|high|N][,min=SIZE][,max=SIZE]. The first
    /// guest that names a group brings its limits along; the members divide what the group gets
    #[arg(long, value_name = "name=NAME,...")]
    pub group: Option<GroupOption>,
    /// Folder for the guest's swap file, which has no name and is gone when the guest ends
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub swap: PathBuf,
    /// Whether the guest's process is confined to the system calls that a running guest needs: on, off, or log, which
    /// carries forbidden ones out and notes them in the kernel's log
    #[arg(long, value_name = "on|off|log", default_value_t)]
    pub confine: confine::Mode,
}

impl GuestArgs {
    /// The options as `levy vmm` takes them.
    pub fn to_args(&self) -> Vec<OsString> {
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

    /// The kernel's command line: Levy's own words, the network cards', the user's.
    pub fn full_cmdline(&self) -> String {
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
