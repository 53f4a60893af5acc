//! `levy host`: the manager of many guests' memory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use allocator::Tax;

use levy_machine::process::say;
use levy_machine::{config, process};
use levy_manager::api;
use levy_manager::budget::{Budget, BudgetError, Source};
use levy_manager::cgroup::{self, MemoryHigh};
use levy_manager::host::{Host, HostError, Start};
use levy_manager::kept::{Kept, KeptSettings};
use levy_manager::policy::{self, Sampling, Settings};
use levy_protocol::run_dir;
use levy_protocol::run_dir::{Sockets, kept_in};

const EXAMPLES: &str = "\
Guests find the manager by its run directory. `levy run` uses the manager in the default one by itself, and manages its
guests alone where there is none.

Examples:
  levy host --budget 4G                 manage 4 GiB until Ctrl-C
  levy run --count 8                    in another terminal: eight guests under it
  levy ls                               and how they fare
  levy host --run-dir /tmp/a --tax 0    a second manager, without idle-memory tax";

/// Manage the memory of many guests: who gets how much, what they share, what goes to disk.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct HostArgs {
    #[command(flatten)]
    pub(super) policy: PolicyArgs,
    /// Where guests find this manager [default: /run/levy, or levy in $XDG_RUNTIME_DIR]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Folder whose free space may be promised as swap; guests name their own with --swap
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    swap: PathBuf,
}

/// How memory is managed; shared by `levy host` and by `levy run` where it manages its guests itself.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct PolicyArgs {
    /// Memory for all guests together, everything counted [default: the control group's limit, or what is available
    /// less a tenth]
    #[arg(long = "budget", visible_alias = "host-memory", value_name = "SIZE", value_parser = config::size)]
    pub(super) budget: Option<u64>,
    /// Idle-memory tax: the part of an idle page's price that its owner pays on top, in percent, below 100 [default: 75]
    #[arg(long, value_name = "PERCENT", value_parser = tax)]
    pub(super) tax: Option<Tax>,
    /// Longest time between two plans, 100ms to 24h [default: 15s]
    #[arg(long, value_name = "TIME", value_parser = rebalance)]
    pub(super) rebalance: Option<Duration>,
    /// Time that one sample of a guest's activity lasts, whole seconds
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = sample)]
    pub(super) sample: u32,
    /// Control group below which guests are put in a group of their own, whose memory.high is the budget: auto (the
    /// manager's own group, if it may), off, or a path
    #[arg(long, value_name = "auto|off|PATH", default_value_t)]
    pub(super) cgroup: cgroup::Choice,
}

impl Default for PolicyArgs {
    fn default() -> Self {
        let usual = Settings::new(allocator::Pages::ZERO);
        Self {
            budget: None,
            tax: None,
            rebalance: None,
            sample: usual.sample.seconds,
            cgroup: cgroup::Choice::default(),
        }
    }
}

impl PolicyArgs {
    /// The settings, and what the budget's number is.
    pub(super) fn settings(&self) -> Result<(Settings, Budget), BudgetError> {
        let budget = match self.budget {
            Some(bytes) => Budget::explicit(bytes)?,
            None => Budget::detect().map_err(BudgetError::Unknown)?,
        };
        let pages = allocator::Pages::new(budget.bytes / 4096).min(allocator::Pages::LIMIT);
        let usual = Settings::new(pages);
        let settings = Settings {
            tax: self.tax.unwrap_or(usual.tax),
            rebalance: self.rebalance.unwrap_or(usual.rebalance),
            sample: Sampling {
                seconds: self.sample,
                ..usual.sample
            },
            ..usual
        };
        Ok((settings, budget))
    }

    /// What is not named on the command line is as it was set under the manager before, as far as that is possible.
    /// Returns what of that holds on.
    fn go_on_with(&mut self, kept: KeptSettings) -> KeptSettings {
        let mut holds = KeptSettings::default();
        if let (None, Some(bytes)) = (self.budget, kept.budget_bytes) {
            // The machine may have had more memory then.
            match Budget::explicit(bytes) {
                Ok(_) => (self.budget, holds.budget_bytes) = (Some(bytes), Some(bytes)),
                Err(error) => {
                    log::warn!("the budget that was set under the manager before is forgotten: {error}");
                }
            }
        }
        let tax = kept
            .tax_percent
            .and_then(|percent| Tax::new(percent / 100.0).ok());
        if let (None, Some(tax)) = (self.tax, tax) {
            (self.tax, holds.tax_percent) = (Some(tax), kept.tax_percent);
        }
        let rebalance = kept
            .rebalance_seconds
            .and_then(|seconds| policy::rebalance(seconds).ok());
        if let (None, Some(time)) = (self.rebalance, rebalance) {
            (self.rebalance, holds.rebalance_seconds) = (Some(time), kept.rebalance_seconds);
        }
        holds
    }
}

/// A tax in percent.
pub(super) fn tax(text: &str) -> Result<Tax, String> {
    let wrong = || "write a number of percent from 0 to below 100, such as 75".to_owned();
    let percent: f64 = text.trim_end_matches('%').parse().map_err(|_| wrong())?;
    Tax::new(percent / 100.0).map_err(|_| wrong())
}

/// The longest time between two plans.
pub(super) fn rebalance(text: &str) -> Result<Duration, String> {
    policy::rebalance(config::duration(text)?.as_secs_f64())
}

/// The length of a sample in seconds.
fn sample(text: &str) -> Result<u32, String> {
    let time = config::duration(text)?;
    let seconds = u32::try_from(time.as_secs()).unwrap_or(0);
    if time.subsec_nanos() > 0 || !(1..=3600).contains(&seconds) {
        return Err("a sample lasts 1s to 3600s, whole seconds".to_owned());
    }
    Ok(seconds)
}

/// Why there is no manager.
#[derive(Debug, thiserror::Error)]
enum ManageError {
    #[error(transparent)]
    Budget(#[from] BudgetError),
    #[error("cannot use the run directory {dir}; give another --run-dir", dir = dir.display())]
    Dir {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot use {dir} for swap; give another --swap", dir = dir.display())]
    Swap {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("start another `levy host` to manage them; guests look for it in {dir}", dir = .0.display())]
    Lost(PathBuf),
    #[error("the host cannot start this process properly")]
    Process(#[source] std::io::Error),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
    #[error(transparent)]
    Api(#[from] api::ServeError),
}

impl HostArgs {
    /// Manages until Ctrl-C; the exit status of the process.
    pub fn run(self) -> u8 {
        let managed = self.manage();
        if let Err(error) = &managed {
            say(levy_protocol::error_chain(error));
        }
        process::settle();
        u8::from(managed.is_err())
    }

    fn manage(mut self) -> Result<(), ManageError> {
        levy_protocol::raise_open_files();
        let signals = process::block_end_signals().map_err(ManageError::Process)?;
        process::log_to_stderr("host", &signals).map_err(ManageError::Process)?;
        // In a directory like /tmp too, only this user connects to the sockets and reads what is kept.
        rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
        let dir = self.run_dir.unwrap_or_else(run_dir::default_dir);
        run_dir::make_dir(&dir).map_err(|source| ManageError::Dir {
            dir: dir.clone(),
            source,
        })?;
        // What cannot be read is said, and set aside, once it is sure that no other manager runs here.
        let before = Kept::read(&kept_in(&dir)).ok().flatten().unwrap_or_default();
        let kept = self.policy.go_on_with(before.settings);
        let (settings, budget) = self.policy.settings()?;
        if let Some(warning) = budget.warning() {
            log::warn!("{warning}");
        }
        let swap = self.swap;
        let backing =
            levy_manager::backing(&swap).map_err(|source| ManageError::Swap { dir: swap, source })?;
        let memory_high = MemoryHigh::find(&self.policy.cgroup)?;
        let start = Start {
            settings,
            kept,
            backing,
        };
        let host = Host::begin(Sockets::in_dir(&dir), start)?;
        host.use_cgroup(memory_high);
        let served = serve(&host, &dir, signals).inspect_err(|_| {
            host.close();
            host.use_cgroup(None);
        });
        let _api = served?;
        say(format_args!(
            "managing {} for guests ({}); they find me at {}",
            mib(budget.bytes),
            why(&budget, &kept),
            dir.display()
        ));
        host.run();
        host.use_cgroup(None);
        if host.is_lost() {
            return Err(ManageError::Lost(dir));
        }
        say("no manager any more; guests run on without");
        Ok(())
    }
}

/// Whatever else a manager does on threads of its own: it answers, and ends when it is asked to.
fn serve(host: &Host, dir: &Path, signals: process::Signals) -> Result<api::Server, ManageError> {
    let api = api::serve(host.clone(), dir)?;
    let closer = host.clone();
    let watched = signals.watch(move |_| closer.close());
    watched.map_err(ManageError::Process)?;
    Ok(api)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn why(budget: &Budget, kept: &KeptSettings) -> String {
    match &budget.source {
        Source::Explicit if kept.budget_bytes.is_some() => "as set under the manager before".to_owned(),
        Source::Explicit => "as asked".to_owned(),
        Source::Cgroup(group) => format!("the limit of {}", group.display()),
        Source::Available => "what is available, less a reserve".to_owned(),
    }
}
