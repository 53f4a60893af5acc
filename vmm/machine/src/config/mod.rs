//! What a guest is made of, as its user writes it.
//!
//! Every option is one type here, read from `key=value,key=on|off` text with errors that name the key, its value and
//! what would be right. Checks that need the host (is there such a tap, is the kernel a kernel) are made where the
//! thing is used.

mod group;
mod memory;
mod values;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use group::Group;
pub use group::OptionError;
pub use memory::{GroupOption, Hints, ManagedConfig, MemoryConfig, SharingConfig, SharingOption, shares};
pub use values::{duration, guest_name, size};

pub use crate::virtio::balloon::BalloonConfig;

use crate::boot::BootFiles;
use crate::virtio::net::{MacAddress, Subnet};

/// A guest, ready to be started.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// How messages call it.
    pub name: String,
    /// Its memory.
    pub memory: MemoryConfig,
    /// Its vCPUs.
    pub cpus: CpusConfig,
    /// What it boots.
    pub boot: BootFiles,
    /// Its disks, in the order in which the guest numbers them.
    pub disks: Vec<DiskConfig>,
    /// Its network cards.
    pub nets: Vec<NetConfig>,
    /// Its balloon.
    pub balloon: Option<BalloonConfig>,
    /// Its place among the guests of a manager, where it has one.
    pub managed: Option<ManagedConfig>,
    /// Where its human console goes.
    pub serial: SerialConfig,
    /// Unix socket for the agent's channel.
    pub agent: Option<PathBuf>,
    /// Unix socket for control.
    pub control: Option<PathBuf>,
    /// How long the guest may take to the agent's `ready`; without one it may take forever.
    pub deadline: Option<Duration>,
}

/// `--cpus 2`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpusConfig {
    /// Number of vCPUs; how many there can be is the host's to say.
    pub count: u64,
}

impl FromStr for CpusConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut group = Group::parse(text, "count", &[])?;
        let count = group.with("count", |v| {
            v.parse().map_err(|_| "write a number of vCPUs".to_owned())
        })?;
        let count = count.ok_or(OptionError::Missing {
            key: "count",
            example: "--cpus 2",
        })?;
        Ok(Self { count })
    }
}

/// What a guest may do with a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskMode {
    /// Write the image itself; no other guest may have it then.
    Write,
    /// Only read it.
    Read,
    /// Write to a private layer over it: one that is gone when the guest's process ends, unless the layer is a file.
    Overlay,
}

/// `--disk path=root.img,overlay=on`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The raw image.
    pub path: PathBuf,
    /// What the guest may do with it.
    pub mode: DiskMode,
    /// The file of the private layer, where what the guest writes is to outlive its process; empty or a layer of the
    /// same image.
    pub layer: Option<PathBuf>,
    /// Added to each request.
    pub latency: Duration,
}

impl FromStr for DiskConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut group = Group::parse(text, "path", &["readonly", "overlay", "layer", "latency"])?;
        let path = group.required("path", "--disk path=root.img")?.into();
        let mode = match (group.switch("readonly")?, group.switch("overlay")?) {
            (true, true) => {
                return Err(Group::wrong(
                    "overlay",
                    "on",
                    "a disk with readonly=on has nothing to overlay",
                ));
            }
            (true, false) => DiskMode::Read,
            (false, true) => DiskMode::Overlay,
            (false, false) => DiskMode::Write,
        };
        let layer = group.with("layer", |path| Ok(PathBuf::from(path)))?;
        if let Some(layer) = layer.as_ref().filter(|_| mode != DiskMode::Overlay) {
            return Err(Group::wrong(
                "layer",
                layer.display(),
                "only a disk with overlay=on has a layer",
            ));
        }
        let latency = group.duration("latency")?.unwrap_or_default();
        if latency > Duration::from_secs(1) {
            return Err(Group::wrong(
                "latency",
                format!("{latency:?}"),
                "at most 1s per request",
            ));
        }
        Ok(Self {
            path,
            mode,
            layer,
            latency,
        })
    }
}

impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            DiskMode::Write => "",
            DiskMode::Read => ",readonly=on",
            DiskMode::Overlay => ",overlay=on",
        };
        write!(
            f,
            "path={}{mode},latency={}us",
            self.path.display(),
            self.latency.as_micros()
        )?;
        let layer = self.layer.as_ref();
        layer.map_or(Ok(()), |layer| write!(f, ",layer={}", layer.display()))
    }
}

/// `--net tap=levy0,create=on,host=10.0.3.1/24,guest=10.0.3.2/24`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Name of the tap interface.
    pub tap: String,
    /// Whether to create it for the guest's lifetime.
    pub create: bool,
    /// The card's address.
    pub mac: Option<MacAddress>,
    /// The host's address on a created tap.
    pub host: Option<Subnet>,
    /// The guest's address, handed to it on its command line.
    pub guest: Option<Subnet>,
}

impl FromStr for NetConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut group = Group::parse(text, "tap", &["create", "mac", "host", "guest"])?;
        let config = Self {
            tap: group.required("tap", "--net tap=levy0")?,
            create: group.switch("create")?,
            mac: group.parsed("mac")?,
            host: group.parsed("host")?,
            guest: group.parsed("guest")?,
        };
        match config.host {
            Some(host) if !config.create => Err(Group::wrong(
                "host",
                host.address,
                "only a tap that levy creates (create=on) gets an address",
            )),
            _ => Ok(config),
        }
    }
}

impl fmt::Display for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tap={},create={}", self.tap, on_or_off(self.create))?;
        if let Some(mac) = self.mac {
            write!(f, ",mac={mac}")?;
        }
        for (key, subnet) in [("host", self.host), ("guest", self.guest)] {
            if let Some(subnet) = subnet {
                write!(f, ",{key}={}/{}", subnet.address, subnet.prefix)?;
            }
        }
        Ok(())
    }
}

fn on_or_off(switch: bool) -> &'static str {
    if switch { "on" } else { "off" }
}

impl NetConfig {
    /// The words that give card number `card` its address, where one is given: the kernel's `ip=`, which initramfs
    /// tools read too, and for the first card those of Levy's agent.
    pub fn kernel_words(&self, card: usize) -> Option<String> {
        let guest = self.guest?;
        let gateway = self.host.map(|h| h.address.to_string()).unwrap_or_default();
        let mut words = format!("ip={}::{gateway}:{}::eth{card}:off", guest.address, guest.mask());
        if card == 0 {
            words += &format!(" levy.ip={}/{}", guest.address, guest.prefix);
            if !gateway.is_empty() {
                words += &format!(" levy.gateway={gateway}");
            }
        }
        Some(words)
    }
}

impl FromStr for BalloonConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let keys = ["deflate_on_oom", "free_page_reporting", "stats_polling_interval"];
        let mut group = Group::parse(text, "size", &keys)?;
        let bytes = group.bytes("size")?.unwrap_or(0);
        if !bytes.is_multiple_of(1 << 20) {
            return Err(Group::wrong("size", bytes, "a balloon has a whole number of MiB"));
        }
        Ok(Self {
            bytes,
            deflate_on_oom: group.switch_or("deflate_on_oom", true)?,
            free_page_reporting: group.switch_or("free_page_reporting", true)?,
            stats_polling_interval: group
                .duration("stats_polling_interval")?
                .unwrap_or(Self::default().stats_polling_interval),
        })
    }
}

impl fmt::Display for BalloonConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "size={},deflate_on_oom={},free_page_reporting={},stats_polling_interval={}ms",
            self.bytes,
            on_or_off(self.deflate_on_oom),
            on_or_off(self.free_page_reporting),
            self.stats_polling_interval.as_millis()
        )
    }
}

/// `--serial file=guest.log`
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum SerialConfig {
    /// Standard input and output of the process.
    #[default]
    Stdio,
    /// Nowhere.
    Null,
    /// A file that is written anew, and keeps the newest MiB.
    File(PathBuf),
}

impl FromStr for SerialConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut group = Group::parse(text, "mode", &["file"])?;
        let file = group.with("file", |path| Ok(PathBuf::from(path)))?;
        let mode = group.with("mode", |mode| match mode {
            "stdio" => Ok(Self::Stdio),
            "null" => Ok(Self::Null),
            _ => Err("write stdio or null, or file=PATH".to_owned()),
        })?;
        match (mode, file) {
            (None, Some(path)) => Ok(Self::File(path)),
            (Some(mode), None) => Ok(mode),
            _ => Err(Group::wrong("mode", text, "give either mode= or file=")),
        }
    }
}

#[cfg(test)]
mod tests;
