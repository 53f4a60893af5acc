//! `--memory` and `--sharing`: how much a guest may have, and with whom it shares.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::group::{Group, OptionError};
use crate::layout::FrameSpace;
use levy_protocol::link::{GroupLimits, check_name};

/// The part of its size that a guest is promised where its owner names no minimum.
const DEFAULT_MIN_PART: u64 = 4;

/// `--memory size=512M,min=128M,shares=normal`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Configured size ("max"), bytes, whole MiB.
    pub bytes: u64,
    /// Guaranteed memory ("min"), bytes; a quarter of the size by default.
    pub min: u64,
    /// Right to memory relative to other guests: low, normal and high are 500, 1000 and 2000.
    pub shares: u32,
    /// Leave the memory to the kernel's same-page merging instead of managing it.
    pub mergeable: bool,
}

impl FromStr for MemoryConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut group = Group::parse(text, "size", &["min", "shares", "mergeable"])?;
        let bytes = group.bytes("size")?.ok_or(OptionError::Missing {
            key: "size",
            example: "--memory size=512M",
        })?;
        if bytes == 0 || !bytes.is_multiple_of(1 << 20) {
            let what = "guest memory is a positive number of whole MiB";
            return Err(Group::wrong("size", bytes, what));
        }
        if FrameSpace::of_ram(bytes).is_none() {
            let most = FrameSpace::MOST_RAM >> 20;
            let what = format_args!("guests have less than 16 TiB, {most}M at most");
            return Err(Group::wrong("size", bytes, what));
        }
        let min = group.bytes("min")?.unwrap_or(bytes / DEFAULT_MIN_PART);
        if min > bytes {
            return Err(Group::wrong(
                "min",
                min,
                format_args!("more than the guest's size of {bytes}"),
            ));
        }
        let shares = group
            .with("shares", shares)?
            .unwrap_or(allocator::Shares::NORMAL.get());
        let mergeable = group.switch("mergeable")?;
        Ok(Self {
            bytes,
            min,
            shares,
            mergeable,
        })
    }
}

impl fmt::Display for MemoryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "size={},min={},shares={}", self.bytes, self.min, self.shares)?;
        match self.mergeable {
            true => f.write_str(",mergeable=on"),
            false => Ok(()),
        }
    }
}

/// Shares by name or number.
pub fn shares(text: &str) -> Result<u32, String> {
    match text {
        "low" => Ok(allocator::Shares::LOW.get()),
        "normal" => Ok(allocator::Shares::NORMAL.get()),
        "high" => Ok(allocator::Shares::HIGH.get()),
        number => match number.parse() {
            Ok(0) | Err(_) => Err(format!(
                "{number:?} is not low (500), normal (1000), high (2000) or a number above 0, {} at most",
                u32::MAX
            )),
            Ok(shares) => Ok(shares),
        },
    }
}

/// `--sharing mode=on,domain=web`
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum SharingConfig {
    /// With the guests started by the same command.
    #[default]
    Launch,
    /// With all guests that name this domain.
    Domain(String),
    /// With no other guest.
    Off,
}

impl FromStr for SharingConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        Self::read(&mut Group::parse(text, "mode", &["domain"])?)
    }
}

impl SharingConfig {
    fn read(group: &mut Group) -> Result<Self, OptionError> {
        let mode = group.with("mode", super::values::switch)?.unwrap_or(true);
        let domain = group.with("domain", |name| {
            check_name("domain", name).map_err(|wrong| format!("name a domain; {wrong}"))
        })?;
        match (mode, domain) {
            (true, None) => Ok(Self::Launch),
            (true, Some(domain)) => Ok(Self::Domain(domain)),
            (false, None) => Ok(Self::Off),
            (false, Some(domain)) => Err(Group::wrong("domain", domain, "mode=off shares with nobody")),
        }
    }
}

impl fmt::Display for SharingConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch => f.write_str("mode=on"),
            Self::Domain(domain) => write!(f, "mode=on,domain={domain}"),
            Self::Off => f.write_str("mode=off"),
        }
    }
}

/// `--group name=web,shares=high,min=256M,max=1G`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOption(pub GroupLimits);

impl FromStr for GroupOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut group = Group::parse(text, "name", &["shares", "min", "max"])?;
        let name = group.required("name", "--group name=web")?;
        check_name("group", &name).map_err(|what| Group::wrong("name", &name, what))?;
        let shares = group
            .with("shares", shares)?
            .unwrap_or(allocator::Shares::NORMAL.get());
        let min = group.bytes("min")?.unwrap_or(0);
        let max = group.bytes("max")?;
        match max {
            Some(max) if min > max => Err(Group::wrong("min", min, format_args!("more than max={max}"))),
            _ => Ok(Self(GroupLimits {
                name,
                shares,
                min,
                max,
            })),
        }
    }
}

impl fmt::Display for GroupOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GroupLimits {
            name,
            shares,
            min,
            max,
        } = &self.0;
        write!(f, "name={name},shares={shares},min={min}")?;
        max.map_or(Ok(()), |max| write!(f, ",max={max}"))
    }
}

/// `--sharing` as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SharingOption {
    /// With whom.
    pub with: SharingConfig,
    /// Whether pages read from disks that guests share are looked at first.
    pub hints: Hints,
}

/// Whether reads of shared disks say which pages are probably equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Hints {
    /// They do.
    #[default]
    On,
    /// They do not: pages are found by scanning alone.
    Off,
}

impl FromStr for SharingOption {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut group = Group::parse(text, "mode", &["domain", "hints"])?;
        let hints = match group.with("hints", super::values::switch)? {
            None | Some(true) => Hints::On,
            Some(false) => Hints::Off,
        };
        let with = SharingConfig::read(&mut group)?;
        Ok(Self { with, hints })
    }
}

impl fmt::Display for SharingOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with.fmt(f)?;
        match self.hints {
            Hints::On => Ok(()),
            Hints::Off => f.write_str(",hints=off"),
        }
    }
}

/// How a guest is managed: by whom, and what it brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedConfig {
    /// Run directory of the manager.
    pub manager: PathBuf,
    /// Whom it shares with.
    pub sharing: SharingConfig,
    /// Whether reads of shared disks say what is probably equal.
    pub hints: Hints,
    /// The group that it claims memory with.
    pub group: Option<GroupLimits>,
    /// The fleet file that it was started from.
    pub fleet: Option<String>,
    /// Where its swap file goes; without one nothing is swapped.
    pub swap: Option<PathBuf>,
}
