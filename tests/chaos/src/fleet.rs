//! A manager and its guests, watched all the time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use simulated::{GuestOptions, SmallDisk};
use tempfile::TempDir;

use crate::budget::Budget;
use crate::clock::Clock;
use crate::course::start_time;
use crate::guest::{Guest, Kind};
use crate::later::Later;
use crate::leash::{is_abort, tail};
use crate::manager::Manager;
use crate::refusal::{OF_GUESTS, OF_MANAGERS, Refusal};
use crate::strain::Strain;
use crate::tally::{Breach, Tally};
use crate::witness::Witness;
use levy_bench::Random;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// How long starts, returns and checks may take at the end, and whatever else the harness waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What all fleets of a run have in common.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// The `levy` program; without one, this program's own part.
    pub(crate) levy: Option<PathBuf>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) interrupted: Arc<AtomicBool>,
    pub(crate) seed: u64,
    /// Whether everything that is done is told.
    pub(crate) is_loud: bool,
}

#[derive(Debug)]
pub(crate) struct Fleet {
    // Processes end before the places that they use.
    pub(crate) guests: Vec<Guest>,
    pub(crate) manager: Manager,
    pub(crate) strain: Option<Strain>,
    pub(crate) later: Later,
    pub(crate) random: Random,
    pub(crate) clock: Clock,
    pub(crate) budget: Budget,
    pub(crate) witness: Arc<Witness>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) interrupted: Arc<AtomicBool>,
    /// Every manager's process that there was, and when it started.
    pub(crate) rulers: Vec<(u32, Option<u64>)>,
    /// Looks in a row in which references were missing.
    pub(crate) missing: u32,
    pub(crate) swap: Swap,
    pub(crate) dir: TempDir,
}

/// Where swap files are.
#[derive(Debug)]
pub(crate) enum Swap {
    Own(SmallDisk),
    /// Where nothing can be mounted.
    Folder(TempDir),
}

impl Swap {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Own(disk) => disk.path(),
            Self::Folder(dir) => dir.path(),
        }
    }
}

impl Fleet {
    /// A manager and three to five guests, some of them with the same pages.
    pub(crate) fn start(number: usize, setting: &Setting) -> anyhow::Result<Self> {
        let seed = setting.seed.wrapping_mul(1000) + number as u64;
        let mut random = Random::new(seed);
        let dir = tempfile::Builder::new().prefix("levy-chaos-").tempdir()?;
        let kinds: Vec<(u64, u64)> = (0..random.within(3..=5))
            .map(|_| (random.within(16..=28), random.within(2..=6)))
            .collect();
        let sizes = kinds.iter().map(|(mib, _)| mib).sum::<u64>();
        let swap = match SmallDisk::or_skip(2 * sizes + 128) {
            Some(disk) => Swap::Own(disk),
            None => Swap::Folder(tempfile::tempdir()?),
        };
        let (guest_dir, swap_dir) = (dir.path().to_owned(), swap.path().to_owned());
        let guests: Vec<Guest> = (1..)
            .zip(kinds)
            .map(|(place, (mib, min_mib))| {
                let name = format!("f{number}-g{place}");
                let options = GuestOptions::new(&name).mib(mib).min_mib(min_mib);
                let options = options.rate(250).seed(1 + place / 4).late_fill();
                let options = options.swap(&swap_dir).under(&guest_dir);
                let kind = Kind {
                    name,
                    mib,
                    min_mib,
                    options,
                };
                Guest::new(kind, &guest_dir)
            })
            .collect();
        let budget = Budget::new(guests.iter().map(|guest| (guest.kind.mib, guest.kind.min_mib)));
        let manager = Manager::new(setting.levy.clone(), dir.path(), budget.usual_mib(), swap.path());
        Ok(Self {
            guests,
            manager,
            strain: None,
            later: Later::default(),
            random,
            clock: Clock::new(),
            budget,
            witness: Arc::new(Witness::new(setting, number)),
            tally: Arc::clone(&setting.tally),
            interrupted: Arc::clone(&setting.interrupted),
            rulers: Vec::new(),
            missing: 0,
            swap,
            dir,
        })
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    /// Watches for `time`.
    pub(crate) fn live(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.is_interrupted() {
            let began = Instant::now();
            self.look()?;
            std::thread::sleep(LOOK.saturating_sub(began.elapsed()));
        }
        Ok(())
    }

    /// Watches until `done`; whether that came about in time.
    pub(crate) fn live_until(
        &mut self,
        time: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> anyhow::Result<bool> {
        let until = self.clock.now() + time;
        while !done(self) {
            if self.clock.now() > until || self.is_interrupted() {
                return Ok(false);
            }
            self.live(LOOK)?;
        }
        Ok(true)
    }

    /// Everything is as it should be when nothing is done for a while.
    pub(crate) fn is_settled(&self) -> bool {
        let rules = self
            .manager
            .life
            .as_ref()
            .is_some_and(|rule| rule.sound.is_some());
        let runs = |guest: &Guest| guest.life.as_ref().is_some_and(|life| life.runs() && life.back);
        rules && self.later.is_empty() && self.guests.iter().all(runs)
    }

    /// Starts a manager, now and then one that the system refuses something, or whose clock is ahead.
    pub(crate) fn start_manager(&mut self) -> anyhow::Result<()> {
        // What may be promised is measured at the start.
        if matches!(self.strain, Some(Strain::Disk(_))) {
            self.ease();
        }
        let refuse = self.random_refusal(&OF_MANAGERS);
        let ahead = self.random.within(10..=100_000);
        let skew = self.random.one_of(1, 6).then_some(ahead);
        self.witness.note(&format!(
            "a manager starts, refused {refuse:?}, clock ahead {skew:?}"
        ));
        self.tally
            .add("actions.managers_refused_calls", u64::from(refuse.is_some()));
        self.tally
            .add("actions.managers_with_another_clock", u64::from(skew.is_some()));
        self.manager.start(refuse, skew)?;
        let process = self.manager.life.as_ref().map(|rule| rule.process.id());
        self.rulers.extend(process.map(|pid| (pid, start_time(pid))));
        self.disturb_all();
        Ok(())
    }

    /// Starts a guest's process, now and then one that the system refuses something.
    pub(crate) fn start_guest(&mut self, place: usize) -> anyhow::Result<()> {
        // One that can give up little must not make a budget impossible.
        let weak = self
            .guests
            .iter()
            .flat_map(|guest| &guest.life)
            .any(|life| life.weak);
        let fits = !weak && self.budget.leaves_room_for_a_weak_one();
        let refuse = self.random_refusal(&OF_GUESTS).filter(|_| fits);
        let now = self.clock.now();
        let guest = &mut self.guests[place];
        self.witness
            .note(&format!("{} starts, refused {refuse:?}", guest.kind.name));
        self.tally.count("starts");
        self.tally
            .add("actions.guests_refused_calls", u64::from(refuse.is_some()));
        guest.start(refuse, now, &self.witness)
    }

    fn random_refusal(&mut self, of: &[Refusal]) -> Option<Refusal> {
        let refusal = of[self.random.place(of.len())];
        self.random.one_of(1, 6).then_some(refusal)
    }

    /// All guests have to find their manager again.
    pub(crate) fn disturb_all(&mut self) {
        let now = self.clock.now();
        for life in self.guests.iter_mut().filter_map(|guest| guest.life.as_mut()) {
            life.disturb(now);
        }
    }

    /// What is short is there again.
    pub(crate) fn ease(&mut self) {
        let Some(strain) = self.strain.take() else { return };
        self.witness.note("what was short is there again");
        let (pid, now) = (strain.pid(), self.clock.now());
        drop(strain);
        if let Some(rule) = self.manager.life.as_mut().filter(|rule| rule.strained) {
            rule.strained = false;
            rule.sound = rule.sound.map(|_| now);
            self.disturb_all();
        }
        let lives = self.guests.iter_mut().filter_map(|guest| guest.life.as_mut());
        for life in lives.filter(|life| life.strained && Some(life.process.pid()) == pid) {
            life.strained = false;
            life.disturb(now);
        }
    }

    /// Processes that ended without being told to.
    pub(crate) fn bury(&mut self) -> anyhow::Result<()> {
        if let Some(rule) = &mut self.manager.life
            && let Some(status) = rule.process.ended()?
        {
            let log = tail(&self.manager.log(), 12);
            let what = format!("the manager ended with {status}; its last words:\n{log}");
            self.witness.breach(Breach::Abort, 1, &what);
            self.manager.life = None;
            self.later.forget_manager();
            self.later.start_manager(Duration::from_millis(500));
        }
        for place in 0..self.guests.len() {
            let guest = &mut self.guests[place];
            let Some(life) = &mut guest.life else { continue };
            let Some(status) = life.process.ended().context("wait")? else {
                continue;
            };
            let heard = life.last_words();
            let (reason, ran) = (heard.failed, heard.status.is_some());
            guest.life = None;
            self.later.forget_guest(place);
            self.later.start_guest(place, Duration::from_secs(1));
            let name = guest.kind.name.clone();
            if let (Some(reason), false) = (&reason, is_abort(status) || ran) {
                self.tally.count("starts_refused");
                guest.failures += 1;
                let failures = guest.failures;
                self.witness
                    .note(&format!("{name} could not start ({failures}): {reason}"));
                continue;
            }
            let log = tail(guest.log(), 12);
            let what = format!("{name} ended with {status}; it said {reason:?}; its last words:\n{log}");
            self.witness.breach(Breach::Abort, 1, &what);
        }
        Ok(())
    }
}
