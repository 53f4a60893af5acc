//! One guest of a fleet: a name that processes come and go under.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use simulated::{GuestOptions, Said, Status};

use crate::assigned::Assigned;
use crate::hunger::Hunger;
use crate::leash::{Process, Start, Talks};
use crate::refusal::Refusal;
use crate::tally::Breach;
use crate::witness::Witness;

/// Pages in a MiB.
const PAGES: u64 = 256;

/// Shares of a guest of which nothing else is said.
const SHARES: u64 = 1000;

/// What is promised to a guest is kept but for this part of it, and a MiB: pages on their way in and out.
const SLACK_PART: u64 = 64;

/// What a guest is, whatever its process.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    pub(crate) name: String,
    pub(crate) mib: u64,
    pub(crate) min_mib: u64,
    pub(crate) options: GuestOptions,
}

#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) kind: Kind,
    pub(crate) life: Option<Life>,
    /// Starts that came to nothing, in a row.
    pub(crate) failures: u32,
    log: PathBuf,
}

/// A guest's process.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) process: Process,
    input: ChildStdin,
    heard: Arc<Mutex<Heard>>,
    ear: Option<JoinHandle<()>>,
    pub(crate) weak: bool,
    pub(crate) began: Duration,
    /// What the API says of it.
    pub(crate) shares: Assigned,
    pub(crate) min_bytes: Assigned,
    /// It was seen at work.
    pub(crate) worked: bool,
    /// Since when nothing is done to it.
    pub(crate) sound: Duration,
    /// Whether it was seen under its manager since then.
    pub(crate) back: bool,
    /// When it was seen so first.
    pub(crate) returned: Duration,
    /// How long it, and its manager, had no CPU since then.
    hunger: Hunger,
    manager_hunger: Option<Duration>,
    /// It did not come back in time, which was told.
    pub(crate) late: bool,
    /// It was stopped then, and may not know what its manager wants.
    pub(crate) stopped: Option<Duration>,
    /// It has too few descriptors.
    pub(crate) strained: bool,
    /// When it was told to check all its pages, and how often it had before.
    pub(crate) asked: Option<(Duration, u64)>,
}

/// What a process has said.
#[derive(Debug, Default, Clone)]
pub(crate) struct Heard {
    pub(crate) status: Option<Status>,
    pub(crate) checks: u64,
    pub(crate) failed: Option<String>,
}

impl Guest {
    pub(crate) fn new(kind: Kind, dir: &Path) -> Self {
        Self {
            log: dir.join(format!("{}.log", kind.name)),
            kind,
            life: None,
            failures: 0,
        }
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Starts a process for it.
    pub(crate) fn start(
        &mut self,
        refuse: Option<Refusal>,
        now: Duration,
        witness: &Arc<Witness>,
    ) -> anyhow::Result<()> {
        let start = Start {
            argv: self.kind.options.to_args(),
            refuse: refuse.into_iter().collect(),
            skew: None,
            log: self.log.clone(),
        };
        let mut process = Process::start(&start, Talks::Yes)?;
        let (input, output) = process.talk().expect("it was started with pipes");
        let heard = Arc::new(Mutex::new(Heard::default()));
        let ear = Ear {
            kind: self.kind.clone(),
            heard: Arc::clone(&heard),
            witness: Arc::clone(witness),
            wrong: 0,
            lost: 0,
        };
        let ear = std::thread::Builder::new().spawn(move || ear.listen(output))?;
        self.life = Some(Life {
            process,
            input,
            heard,
            ear: Some(ear),
            weak: refuse.is_some(),
            began: now,
            shares: Assigned::new(SHARES),
            min_bytes: Assigned::new(self.kind.min_mib << 20),
            worked: false,
            sound: now,
            back: false,
            returned: now,
            hunger: Hunger::default(),
            manager_hunger: None,
            late: false,
            stopped: None,
            strained: false,
            asked: None,
        });
        Ok(())
    }
}

impl Life {
    pub(crate) fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that it has said, once it has ended.
    pub(crate) fn last_words(&mut self) -> Heard {
        if let Some(ear) = self.ear.take() {
            // Its output ended with it.
            let _ = ear.join();
        }
        self.heard().clone()
    }

    /// Whether its memory is filled and its writers work.
    pub(crate) fn runs(&self) -> bool {
        self.heard().status.is_some()
    }

    /// Whether it can be expected to do anything.
    pub(crate) fn is_free(&self) -> bool {
        !self.process.is_stopped() && !self.strained
    }

    /// Something was done to it, or to its manager.
    pub(crate) fn disturb(&mut self, now: Duration) {
        self.sound = now;
        self.back = false;
        self.late = false;
        self.hunger = Hunger::default();
        self.manager_hunger = None;
    }

    /// How long it was kept from coming back by nothing but a busy machine. `manager` is the same of its manager, in all.
    pub(crate) fn starved(&mut self, manager: Duration) -> Duration {
        let before = *self.manager_hunger.get_or_insert(manager);
        self.hunger.look(self.process.id()) + manager.saturating_sub(before)
    }

    /// Has it check all its pages; not while it has not answered the last time.
    pub(crate) fn check(&mut self, now: Duration) {
        if self.asked.is_none() && self.runs() && writeln!(self.input, "check").is_ok() {
            let checks = self.heard().checks;
            self.asked = Some((now, checks));
        }
    }

    /// Whether it has answered since it was asked.
    pub(crate) fn has_checked(&mut self) -> bool {
        let checks = self.heard().checks;
        if self.asked.is_some_and(|(_, before)| checks > before) {
            self.asked = None;
        }
        self.asked.is_none()
    }
}

/// Listens to one process to its end.
struct Ear {
    kind: Kind,
    heard: Arc<Mutex<Heard>>,
    witness: Arc<Witness>,
    /// Wrong pages told so far.
    wrong: u64,
    lost: u64,
}

impl Ear {
    fn listen(mut self, output: ChildStdout) {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(Said::Status(status)) => {
                    self.judge(&status);
                    self.heard().status = Some(status);
                }
                Ok(Said::Checked { wrong, .. }) => {
                    self.witness.tally.count("checks");
                    if wrong > 0 {
                        let what = format!("{}: {wrong} words in a full check", self.kind.name);
                        self.witness.breach(Breach::WrongBytes, wrong * 8, &what);
                    }
                    self.heard().checks += 1;
                }
                Ok(Said::Failed(reason)) => self.heard().failed = Some(reason),
                // A line that was cut by its end.
                Err(_) => {}
            }
        }
    }

    fn judge(&mut self, status: &Status) {
        self.witness.tally.count("statuses");
        let name = &self.kind.name;
        if status.wrong > self.wrong {
            let what = format!("{name}: writers found pages wrong: {status:?}");
            let words = status.wrong - self.wrong;
            self.witness.breach(Breach::WrongBytes, words * 8, &what);
            self.wrong = status.wrong;
        }
        if status.lost > self.lost {
            let what = format!("{name}: pages were lost: {status:?}");
            let pages = status.lost - self.lost;
            self.witness.breach(Breach::WrongBytes, pages * 4096, &what);
            self.lost = status.lost;
        }
        // Pages of zeros may be given up, and are counted as empty then: what is missing are those that were put away.
        let away = (status.compressed + status.swapped).saturating_sub(status.store_bytes / 4096);
        let (has, min) = (
            (self.kind.mib * PAGES).saturating_sub(away),
            self.kind.min_mib * PAGES,
        );
        if has + PAGES + min / SLACK_PART < min {
            let what = format!("{name} has {has} pages of its minimum of {min}: {status:?}");
            self.witness.breach(Breach::MinimumBroken, 1, &what);
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
