//! The manager of a fleet: a run directory that processes come and go in.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use levy_launcher::api_client::{Client, ClientError};
use levy_protocol::api::{GuestView, HostChange, HostView};

use crate::assigned::{Assigned, Change};
use crate::hunger::Hunger;
use crate::leash::{Process, Start, Talks};
use crate::refusal::Refusal;

/// How long a manager may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Manager {
    /// The `levy` program; without one, this program's own part.
    program: Option<PathBuf>,
    dir: PathBuf,
    args: Vec<OsString>,
    /// The budget that a manager begins with where none was set.
    first_budget: OsString,
    is_budget_set: bool,
    /// The budget by the API.
    pub(crate) budget: Assigned,
    pub(crate) life: Option<Rule>,
}

/// A manager's process.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) process: Process,
    /// Since when it has answered, and nothing was done to it.
    pub(crate) sound: Option<Duration>,
    /// It has too few descriptors or threads.
    pub(crate) strained: bool,
    /// Since when it owes an answer.
    pub(crate) silent: Option<Duration>,
    /// That it does not answer was told.
    pub(crate) is_told_silent: bool,
    /// How long it had no CPU, in all and when it began to owe an answer.
    pub(crate) hunger: Hunger,
    pub(crate) hungry_before: Duration,
}

/// What a manager says about everything.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) host: HostView,
    pub(crate) guests: Vec<GuestView>,
}

impl Manager {
    pub(crate) fn new(program: Option<PathBuf>, dir: &Path, budget_mib: u64, swap: &Path) -> Self {
        let mut args: Vec<OsString> = vec!["host".into()];
        for (option, value) in [
            ("--run-dir", OsString::from(dir)),
            ("--swap", swap.into()),
            ("--sample", "5s".into()),
            ("--rebalance", "3s".into()),
        ] {
            args.extend([option.into(), value]);
        }
        Self {
            program,
            dir: dir.to_owned(),
            args,
            first_budget: format!("--budget={budget_mib}M").into(),
            is_budget_set: false,
            budget: Assigned::new(budget_mib << 20),
            life: None,
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("manager.log")
    }

    pub(crate) fn start(&mut self, refuse: Option<Refusal>, skew: Option<u64>) -> anyhow::Result<()> {
        // One that was set holds for those that come where they are not told another.
        let first = (!self.is_budget_set).then(|| self.first_budget.clone());
        let program = self.program.iter().map(|path| path.as_os_str().to_owned());
        let start = Start {
            argv: program.chain(self.args.iter().cloned()).chain(first).collect(),
            refuse: refuse.into_iter().collect(),
            skew,
            log: self.log(),
        };
        self.life = Some(Rule {
            process: Process::start(&start, Talks::No)?,
            sound: None,
            strained: false,
            silent: None,
            is_told_silent: false,
            hunger: Hunger::default(),
            hungry_before: Duration::ZERO,
        });
        Ok(())
    }

    /// Its API. A manager that hangs must not hold up its watcher.
    pub(crate) fn client(&self) -> Client {
        Client::at(&self.dir).within(PATIENCE)
    }

    /// What it says, where it can be expected to say anything.
    pub(crate) fn ask(&self) -> anyhow::Result<View> {
        Ok(View {
            host: self.client().host()?,
            guests: self.client().guests()?,
        })
    }

    /// Sets the budget.
    pub(crate) fn set_budget(&mut self, bytes: u64) -> Change {
        let change = HostChange {
            budget_bytes: Some(bytes),
            ..HostChange::default()
        };
        let answer = self.client().change_host(&change);
        let changed = self.became(answer);
        self.is_budget_set |= changed == Change::Kept;
        self.budget.set(bytes, changed);
        changed
    }

    /// What became of a change that was answered so.
    pub(crate) fn became<T>(&self, answer: Result<T, ClientError>) -> Change {
        let is_kept = || self.client().host().is_ok_and(|host| host.unkept.is_none());
        match answer {
            Ok(_) if is_kept() => Change::Kept,
            Err(ClientError::Refused {
                status: 400..=499, ..
            }) => Change::Refused,
            Ok(_) | Err(_) => Change::Unsure,
        }
    }
}

impl Rule {
    /// Whether it can be expected to do anything.
    pub(crate) fn is_free(&self) -> bool {
        !self.process.is_stopped() && !self.strained
    }
}
