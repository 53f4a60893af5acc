//! `FLEET.toml`: the guests of one launch, as their user writes them down.
//!
//! Every value is read by the type that reads the same option on the command line; what is wrong is said with the
//! file, the line and the key.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use levy_agent::Workload;
use serde::Deserialize;
use toml::{Spanned, Value};

use self::source::{Source, plain};
use super::host::{self, PolicyArgs};
use super::setup::{ImageArgs, Kaslr};
use levy_launcher::{GuestArgs, OnReboot};
use levy_machine::config::{self, DiskConfig, DiskMode, OptionError, SharingConfig};
use levy_protocol::link::{GroupLimits, check_name};

/// Guests that the file may stand for, and each part of it.
const COUNT_LIMIT: i64 = 1024;

/// Bytes in the longest file.
const FILE_LIMIT: u64 = 1 << 20;

/// Why a fleet file cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub(super) enum FleetFileError {
    /// It cannot be read.
    #[error("cannot read the fleet file {path}", path = path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{path}:{line}: {key}: {what}", path = path.display())]
    Wrong {
        path: PathBuf,
        line: usize,
        key: String,
        what: String,
    },
}

/// A fleet, checked as far as the file alone allows.
#[derive(Debug, Clone)]
pub(super) struct FleetFile {
    /// Every guest, by the order of names.
    pub(super) guests: Vec<FleetGuest>,
    /// Settings of a manager that comes with the fleet.
    pub(super) policy: PolicyArgs,
    /// How long a guest may take to be ready.
    pub(super) deadline: Duration,
    /// How much longer than announced a workload may take.
    pub(super) patience: Duration,
    /// Leave guests running after their verdict.
    pub(super) keep: bool,
    /// What its guests are known by: the path of the file.
    pub(super) id: String,
}

/// One guest of a fleet.
#[derive(Debug, Clone)]
pub(super) struct FleetGuest {
    pub(super) name: String,
    pub(super) args: GuestArgs,
    /// What it boots where it has no kernel of its own.
    pub(super) images: ImageArgs,
    pub(super) workload: Option<Workload>,
    pub(super) on_reboot: OnReboot,
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    host: WrittenHost,
    deadline: Option<Spanned<String>>,
    patience: Option<Spanned<String>>,
    swap: Option<PathBuf>,
    #[serde(default)]
    keep: bool,
    #[serde(default)]
    groups: BTreeMap<String, Spanned<WrittenGroup>>,
    #[serde(default)]
    guest: BTreeMap<String, Spanned<WrittenGuest>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGroup {
    shares: Option<Spanned<Value>>,
    min: Option<Spanned<Value>>,
    max: Option<Spanned<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenHost {
    budget: Option<Spanned<Value>>,
    tax: Option<Spanned<Value>>,
    rebalance: Option<Spanned<Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGuest {
    count: Option<Spanned<i64>>,
    size: Spanned<Value>,
    min: Option<Spanned<Value>>,
    shares: Option<Spanned<Value>>,
    cpus: Option<Spanned<Value>>,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    #[serde(default)]
    cmdline: String,
    #[serde(default)]
    disks: Vec<Spanned<String>>,
    #[serde(default)]
    no_disk: bool,
    kaslr: Option<Spanned<bool>>,
    balloon: Option<Spanned<String>>,
    group: Option<Spanned<String>>,
    domain: Option<Spanned<String>>,
    sharing: Option<Spanned<bool>>,
    workload: Option<Spanned<String>>,
    on_reboot: Option<Spanned<String>>,
}

impl FleetFile {
    /// Reads the file at `path`. Files that it names are taken relative to its own folder.
    ///
    /// # Errors
    /// See [`FleetFileError`].
    pub(super) fn read(path: &Path) -> Result<Self, FleetFileError> {
        let failed = |source| FleetFileError::Read {
            path: path.to_owned(),
            source,
        };
        let found = std::fs::metadata(path).map_err(failed)?;
        if !found.is_file() {
            // A pipe may never end, and a device may have no end.
            return Err(failed(std::io::Error::other("it is not a regular file")));
        }
        let size = found.len();
        if size > FILE_LIMIT {
            return Err(failed(std::io::Error::other(format!(
                "{size} bytes are more than the {FILE_LIMIT} that a fleet takes"
            ))));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse(path, &text)
    }

    /// Reads `text`, the contents of `path`.
    ///
    /// # Errors
    /// See [`FleetFileError`].
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, FleetFileError> {
        let source = Source { path, text };
        let written: Written = toml::from_str(text).map_err(|error| source.syntax(&error))?;
        if written.guest.is_empty() {
            return Err(source.wrong(
                0,
                "guest",
                "there are no guests; write [guest.NAME] and size = \"256M\"",
            ));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let swap = folder.join(written.swap.unwrap_or_else(|| "/var/tmp".into()));
        let groups = written
            .groups
            .iter()
            .map(|(name, table)| group(source, name, table))
            .collect::<Result<Vec<_>, _>>()?;
        let (mut guests, mut names) = (Vec::new(), BTreeSet::new());
        for (name, table) in &written.guest {
            let at = table.span().start;
            let entry = Entry {
                source,
                name,
                guest: table.get_ref(),
                groups: &groups,
            };
            let wrong = |what: String| source.wrong(at, &format!("guest.{name}"), what);
            for guest in entry.guests(folder, &swap)? {
                if !names.insert(guest.name.clone()) {
                    return Err(wrong(format!("the guest {} is in the file twice", guest.name)));
                }
                guests.push(guest);
            }
            if guests.len() > COUNT_LIMIT as usize {
                return Err(wrong(format!(
                    "with these, the file has more than {COUNT_LIMIT} guests"
                )));
            }
        }
        let time = |key: &str, value: &Option<Spanned<String>>, usual| match value {
            Some(text) => source.read(key, text, config::duration),
            None => Ok(usual),
        };
        let usual = Duration::from_secs(120);
        Ok(Self {
            guests,
            policy: written.host.policy(source)?,
            deadline: time("deadline", &written.deadline, usual)?,
            patience: time("patience", &written.patience, usual)?,
            keep: written.keep,
            id: std::fs::canonicalize(path)
                .unwrap_or_else(|_| path.to_owned())
                .display()
                .to_string(),
        })
    }
}

impl FleetGuest {
    /// The arguments of its `levy vmm`.
    pub(super) fn to_args(&self, deadline: Duration, fleet: &str) -> Vec<OsString> {
        let mut args = self.args.to_args();
        args.extend(["--deadline".into(), format!("{}ms", deadline.as_millis()).into()]);
        args.extend(["--fleet".into(), fleet.into()]);
        args
    }
}

impl WrittenHost {
    fn policy(&self, source: Source<'_>) -> Result<PolicyArgs, FleetFileError> {
        let mut policy = PolicyArgs::default();
        if let Some(budget) = &self.budget {
            policy.budget = Some(source.read_value("host.budget", budget, config::size)?);
        }
        if let Some(tax) = &self.tax {
            policy.tax = Some(source.read_value("host.tax", tax, host::tax)?);
        }
        if let Some(time) = &self.rebalance {
            policy.rebalance = Some(source.read_value("host.rebalance", time, host::rebalance)?);
        }
        Ok(policy)
    }
}

/// One `[groups.NAME]`, read as `--group` is.
fn group(
    source: Source<'_>,
    name: &str,
    table: &Spanned<WrittenGroup>,
) -> Result<GroupLimits, FleetFileError> {
    let key = |part: &str| format!("groups.{name}.{part}").trim_end_matches('.').to_owned();
    check_name("group", name).map_err(|what| source.wrong(table.span().start, &key(""), what))?;
    let written = table.get_ref();
    let value = |part: &str, value: &Option<Spanned<Value>>| match value {
        None => Ok(None),
        Some(value) => match part {
            "shares" => source
                .read_value(&key(part), value, config::shares)
                .map(|shares| Some(u64::from(shares))),
            _ => source.read_value(&key(part), value, config::size).map(Some),
        },
    };
    let shares = value("shares", &written.shares)?.and_then(|shares| u32::try_from(shares).ok());
    let (min, max) = (
        value("min", &written.min)?.unwrap_or(0),
        value("max", &written.max)?,
    );
    if let (Some(most), Some(at)) = (max.filter(|&max| min > max), &written.min) {
        let what = format!("{min} bytes are more than its max of {most}");
        return Err(source.wrong(at.span().start, &key("min"), what));
    }
    Ok(GroupLimits {
        name: name.to_owned(),
        shares: shares.unwrap_or(allocator::Shares::NORMAL.get()),
        min,
        max,
    })
}

/// One `[guest.NAME]`.
struct Entry<'a> {
    source: Source<'a>,
    name: &'a str,
    guest: &'a WrittenGuest,
    groups: &'a [GroupLimits],
}

impl Entry<'_> {
    fn guests(&self, folder: &Path, swap: &Path) -> Result<Vec<FleetGuest>, FleetFileError> {
        let count = self.count()?;
        let guest = FleetGuest {
            name: self.name.to_owned(),
            args: self.args(folder, swap)?,
            images: self.images()?,
            workload: self.workload()?,
            on_reboot: self.on_reboot()?,
        };
        let written = guest
            .args
            .disk
            .iter()
            .position(|disk| disk.mode == DiskMode::Write);
        if let (Some(disk), 2..) = (written, count) {
            let what = format!("{count} guests cannot write one image; add overlay=on or readonly=on");
            return Err(self.wrong(self.guest.disks[disk].span().start, "disks", what));
        }
        let name = |number: i64| match count {
            1 => self.name.to_owned(),
            _ => format!("{}-{number}", self.name),
        };
        (1..=count)
            .map(|number| {
                let at = self.guest.size.span().start;
                let name = check_name("guest", &name(number));
                Ok(FleetGuest {
                    name: name.map_err(|what| self.source.wrong(at, &self.key(""), what))?,
                    ..guest.clone()
                })
            })
            .collect()
    }

    fn count(&self) -> Result<i64, FleetFileError> {
        match &self.guest.count {
            None => Ok(1),
            Some(count) if (1..=COUNT_LIMIT).contains(count.get_ref()) => Ok(*count.get_ref()),
            Some(count) => Err(self.wrong(
                count.span().start,
                "count",
                format!(
                    "{} is out of range; it goes from 1 to {COUNT_LIMIT}",
                    count.get_ref()
                ),
            )),
        }
    }

    fn args(&self, folder: &Path, swap: &Path) -> Result<GuestArgs, FleetFileError> {
        let guest = self.guest;
        let mut disk = Vec::new();
        for text in &guest.disks {
            let mut config: DiskConfig = self.option("disks", text)?;
            config.path = folder.join(config.path);
            disk.push(config);
        }
        Ok(GuestArgs {
            kernel: guest.kernel.as_ref().map(|path| folder.join(path)),
            initrd: guest.initrd.as_ref().map(|path| folder.join(path)),
            cmdline: guest.cmdline.clone(),
            memory: self.memory()?,
            cpus: match &guest.cpus {
                Some(cpus) => self.source.read_value(&self.key("cpus"), cpus, |text| {
                    text.parse().map_err(|error: OptionError| error.to_string())
                })?,
                None => config::CpusConfig { count: 1 },
            },
            disk,
            net: Vec::new(),
            balloon: match &guest.balloon {
                Some(text) => self.option("balloon", text)?,
                None => config::BalloonConfig::default(),
            },
            sharing: config::SharingOption {
                with: self.sharing()?,
                ..config::SharingOption::default()
            },
            group: self.group()?.map(config::GroupOption),
            swap: swap.to_owned(),
            confine: levy_machine::confine::Mode::default(),
        })
    }

    /// Size, min and shares together, as `--memory` takes them.
    fn memory(&self) -> Result<config::MemoryConfig, FleetFileError> {
        let parts = [
            ("size", Some(&self.guest.size)),
            ("min", self.guest.min.as_ref()),
            ("shares", self.guest.shares.as_ref()),
        ];
        let mut option = String::new();
        for (key, value) in parts {
            let Some(value) = value else { continue };
            let text = plain(value.get_ref()).filter(|text| !text.contains(','));
            let text = text.ok_or_else(|| self.wrong(value.span().start, key, "write a text or a number"))?;
            let comma = if option.is_empty() { "" } else { "," };
            option += &format!("{comma}{key}={text}");
        }
        option.parse().map_err(|error: OptionError| {
            let wrong = match &error {
                OptionError::Value { key, .. } => parts.iter().find(|(name, _)| name == key),
                _ => None,
            };
            let (key, value) = wrong.copied().unwrap_or(parts[0]);
            let at = value.map_or(0, |value| value.span().start);
            match error {
                OptionError::Value { value, what, .. } => self.wrong(at, key, format!("{value}: {what}")),
                other => self.wrong(at, key, other),
            }
        })
    }

    fn images(&self) -> Result<ImageArgs, FleetFileError> {
        let kaslr = match (&self.guest.kaslr, &self.guest.kernel) {
            (Some(kaslr), Some(_)) => {
                let what = "only the Debian kernel has the choice; leave kernel or kaslr out";
                return Err(self.wrong(kaslr.span().start, "kaslr", what));
            }
            (Some(kaslr), None) if *kaslr.get_ref() => Kaslr::On,
            (_, _) => Kaslr::Off,
        };
        Ok(ImageArgs {
            no_disk: self.guest.no_disk,
            kaslr,
        })
    }

    fn sharing(&self) -> Result<SharingConfig, FleetFileError> {
        match (&self.guest.domain, &self.guest.sharing) {
            (Some(domain), None) => {
                let name = check_name("domain", domain.get_ref());
                let name = name.map_err(|what| self.wrong(domain.span().start, "domain", what))?;
                Ok(SharingConfig::Domain(name))
            }
            (Some(domain), Some(sharing)) if !*sharing.get_ref() => Err(self.wrong(
                domain.span().start,
                "domain",
                "sharing = false shares with nobody; leave one of the two out",
            )),
            (Some(domain), Some(_)) => Ok(SharingConfig::Domain(domain.get_ref().clone())),
            (None, Some(sharing)) if !*sharing.get_ref() => Ok(SharingConfig::Off),
            (None, _) => Ok(SharingConfig::Launch),
        }
    }

    fn group(&self) -> Result<Option<GroupLimits>, FleetFileError> {
        let Some(name) = &self.guest.group else {
            return Ok(None);
        };
        let known = self.groups.iter().find(|group| group.name == *name.get_ref());
        known.cloned().map(Some).ok_or_else(|| {
            let what = format!("there is no [groups.{}] in this file", name.get_ref());
            self.wrong(name.span().start, "group", what)
        })
    }

    fn workload(&self) -> Result<Option<Workload>, FleetFileError> {
        let read = |text: &Spanned<String>| {
            self.source
                .read(&self.key("workload"), text, super::run::workload)
        };
        self.guest.workload.as_ref().map(read).transpose()
    }

    fn on_reboot(&self) -> Result<OnReboot, FleetFileError> {
        let read = |text: &str| clap::ValueEnum::from_str(text, false);
        let read = |text: &str| read(text).map_err(|_: String| "write restart or exit".to_owned());
        match &self.guest.on_reboot {
            Some(text) => self.source.read(&self.key("on_reboot"), text, read),
            None => Ok(OnReboot::default()),
        }
    }

    fn option<T: FromStr<Err = OptionError>>(
        &self,
        key: &str,
        text: &Spanned<String>,
    ) -> Result<T, FleetFileError> {
        let read = |text: &str| text.parse().map_err(|error: OptionError| error.to_string());
        self.source.read(&self.key(key), text, read)
    }

    fn wrong(&self, at: usize, key: &str, what: impl Display) -> FleetFileError {
        self.source.wrong(at, &self.key(key), what)
    }

    fn key(&self, key: &str) -> String {
        format!("guest.{}.{key}", self.name)
            .trim_end_matches('.')
            .to_owned()
    }
}

#[cfg(test)]
mod tests;
