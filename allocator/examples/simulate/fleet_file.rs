//! The fleet file: what a user writes.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// A whole scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FleetFile {
    pub(crate) title: String,
    #[serde(default = "one")]
    pub(crate) seed: u64,
    pub(crate) duration_s: u32,
    pub(crate) host: HostPart,
    #[serde(default, rename = "group")]
    pub(crate) groups: Vec<GroupPart>,
    #[serde(rename = "guest")]
    pub(crate) guests: Vec<GuestPart>,
}

/// The host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostPart {
    /// Memory for guests; the free memory that the host aims for comes on top. Either this or `total_mib`.
    pub(crate) guests_mib: Option<u64>,
    /// All memory.
    pub(crate) total_mib: Option<u64>,
    #[serde(default)]
    pub(crate) swap_mib: u64,
    /// What compressed pages may have been before compression.
    #[serde(default)]
    pub(crate) compressed_mib: u64,
    #[serde(default = "default_tax")]
    pub(crate) tax: f64,
    /// Pages sampled per guest and period.
    #[serde(default = "default_sample")]
    pub(crate) sample: u32,
    /// Pages per second per guest that background scanning tries to share.
    #[serde(default)]
    pub(crate) scan_pages_s: u64,
}

/// A pool of guests.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupPart {
    pub(crate) name: String,
    pub(crate) parent: Option<String>,
    #[serde(default)]
    pub(crate) min_mib: u64,
    pub(crate) max_mib: Option<u64>,
    #[serde(default = "normal_shares")]
    pub(crate) shares: u32,
    pub(crate) tax: Option<f64>,
}

/// One guest, or `count` of a kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GuestPart {
    pub(crate) name: String,
    #[serde(default = "one_guest")]
    pub(crate) count: u32,
    /// How far sizes and times of the guests of one kind differ, as a part.
    #[serde(default)]
    pub(crate) spread: f64,
    pub(crate) group: Option<String>,
    #[serde(default)]
    pub(crate) min_mib: u64,
    pub(crate) max_mib: u64,
    #[serde(default = "normal_shares")]
    pub(crate) shares: u32,
    #[serde(default)]
    pub(crate) overhead_mib: u64,
    #[serde(default)]
    pub(crate) balloon: BalloonPart,
    /// When its driver is there: a guest that boots has none.
    #[serde(default)]
    pub(crate) balloon_after_s: u32,
    #[serde(default)]
    pub(crate) cheat: Cheat,
    /// The part of its memory that other guests have too.
    #[serde(default)]
    pub(crate) duplicate: f64,
    /// Shared pages it breaks per second while active.
    #[serde(default)]
    pub(crate) breaks_s: u64,
    #[serde(rename = "phase")]
    pub(crate) phases: Vec<Phase>,
}

/// What a guest does from a moment on.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Phase {
    pub(crate) at_s: u32,
    /// What it touches all the time.
    pub(crate) active_mib: u64,
    /// What it has allocated; at least what is active.
    pub(crate) used_mib: Option<u64>,
    /// How much of what is used are zero pages.
    #[serde(default)]
    pub(crate) zero_mib: u64,
    /// How fast it allocates.
    #[serde(default = "default_growth")]
    pub(crate) growth_mib_s: u64,
    /// What it leaks on top of `used_mib`.
    #[serde(default)]
    pub(crate) leak_mib_s: f64,
    /// If set, it is active only in every second interval of this length.
    pub(crate) burst_s: Option<u32>,
}

/// How a guest's balloon behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BalloonPart {
    #[default]
    Answers,
    Dead,
}

/// How a guest games the manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cheat {
    #[default]
    None,
    /// Touches all its memory just before each sample is drawn.
    Sweeps,
    /// Says that all its memory is in use and that it stalls all the time.
    Lies,
    /// Allocates all it can and answers no balloon.
    Holds,
}

impl FleetFile {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the fleet {}", path.display()))?;
        let fleet: Self =
            toml::from_str(&text).with_context(|| format!("{} is not a fleet", path.display()))?;
        fleet
            .check()
            .with_context(|| format!("{} cannot be simulated", path.display()))?;
        Ok(fleet)
    }

    /// What the types cannot say and the planner would not see.
    fn check(&self) -> Result<()> {
        ensure!(
            (1..=86_400).contains(&self.duration_s),
            "duration_s is {}; 1 to 86400",
            self.duration_s
        );
        let host = &self.host;
        ensure!(
            host.guests_mib.is_some() != host.total_mib.is_some(),
            "host: exactly one of guests_mib and total_mib"
        );
        ensure!(host.sample > 0, "host: sample is 0; sample at least one page");
        ensure!(!self.guests.is_empty(), "there is no guest");
        for guest in &self.guests {
            guest.check().with_context(|| format!("guest {:?}", guest.name))?;
        }
        let names = self.guests.iter().filter_map(|guest| guest.group.as_ref());
        for name in names.chain(self.groups.iter().filter_map(|group| group.parent.as_ref())) {
            if !self.groups.iter().any(|group| group.name == *name) {
                bail!("no group is called {name:?}");
            }
        }
        Ok(())
    }

    /// The same fleet in which only the guests at `cheat` cheat; without it all are honest.
    pub(crate) fn honest_but(&self, cheat: Option<usize>) -> Self {
        let mut fleet = self.clone();
        for (index, guest) in fleet.guests.iter_mut().enumerate() {
            if Some(index) != cheat {
                guest.cheat = Cheat::None;
            }
        }
        fleet
    }
}

impl GuestPart {
    fn check(&self) -> Result<()> {
        ensure!(
            (0.0..1.0).contains(&self.spread),
            "spread is {}; 0 to below 1",
            self.spread
        );
        ensure!(
            (0.0..=1.0).contains(&self.duplicate),
            "duplicate is {}; 0 to 1",
            self.duplicate
        );
        ensure!(
            self.phases.first().is_some_and(|phase| phase.at_s == 0),
            "the first phase must be at_s = 0"
        );
        for pair in self.phases.windows(2) {
            ensure!(pair[0].at_s < pair[1].at_s, "phases must be in the order of at_s");
        }
        for phase in &self.phases {
            let most = phase
                .active_mib
                .max(phase.used_mib.unwrap_or(0))
                .max(phase.zero_mib);
            ensure!(
                most <= self.max_mib,
                "the phase at {} s needs {most} MiB of {}",
                phase.at_s,
                self.max_mib
            );
            ensure!(
                phase.burst_s != Some(0),
                "the phase at {} s has bursts of 0 s",
                phase.at_s
            );
            ensure!(
                phase.leak_mib_s >= 0.0,
                "the phase at {} s leaks {} MiB/s",
                phase.at_s,
                phase.leak_mib_s
            );
        }
        Ok(())
    }
}

fn one() -> u64 {
    1
}

fn one_guest() -> u32 {
    1
}

fn normal_shares() -> u32 {
    1000
}

fn default_tax() -> f64 {
    0.75
}

fn default_sample() -> u32 {
    100
}

fn default_growth() -> u64 {
    256
}
