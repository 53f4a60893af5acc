//! One look at a fleet: what must hold at any time.

use std::path::Path;
use std::time::Duration;

use levy_protocol::api::GuestView;

use crate::budget::{FOLLOWING, Reason, Sample};
use crate::fleet::Fleet;
use crate::guest::{Guest, Life};
use crate::leash::tail;
use crate::manager::View;
use crate::memory;
use crate::tally::Breach;

/// How long a guest, or a manager, may take to come back.
const RETURN: Duration = Duration::from_secs(5);

/// How old a report may be that shows a guest to be there, seconds.
const REPORT_AGE: f64 = 3.0;

/// How long a manager may take to hear that a connection has ended whose last reports it has just read.
const HEARING: Duration = Duration::from_secs(1);

/// How long a guest may take to fill its memory, and to look at all of it.
const WORK: Duration = Duration::from_secs(90);

/// Looks in a row in which guests have more common copies than references, and how many more: they are not counted at
/// one moment.
const MISSING: (u32, u64) = (20, 128);

/// Starts of a guest that a sound manager may refuse in a row.
const REFUSALS: u32 = 30;

impl Fleet {
    /// Does what is due, and judges what there is to see.
    pub(crate) fn look(&mut self) -> anyhow::Result<()> {
        self.clock.look();
        while let Some(deed) = self.later.due() {
            self.act(deed)?;
        }
        self.bury()?;
        let view = self.hear_manager();
        if let Some(view) = &view {
            self.budget
                .is_told(view.host.settings.budget_bytes, self.clock.now());
            self.see_returns(view);
            self.compare_settings(view);
            self.count_references(view);
        }
        self.see_work();
        self.weigh(view.as_ref());
        Ok(())
    }

    /// What the manager says, once it says something.
    fn hear_manager(&mut self) -> Option<View> {
        let now = self.clock.now();
        let rule = self.manager.life.as_mut()?;
        if rule.process.is_stopped() {
            return None;
        }
        let pid = rule.process.id();
        let answer = self.manager.ask().ok().filter(|view| view.host.pid == pid);
        let rule = self.manager.life.as_mut()?;
        if rule.strained {
            return None;
        }
        let hunger = rule.hunger.look(pid);
        if let Some(view) = answer {
            rule.silent = None;
            rule.is_told_silent = false;
            if rule.sound.replace(rule.sound.unwrap_or(now)).is_none() {
                self.tally.count("managers_there");
                self.disturb_all();
            }
            return Some(view);
        }
        if rule.silent.is_none() {
            rule.hungry_before = hunger;
        }
        let since = *rule.silent.get_or_insert(now);
        let waited = now.saturating_sub(since + (hunger - rule.hungry_before));
        if waited > RETURN && !rule.is_told_silent {
            // Once, not at each look.
            rule.is_told_silent = true;
            let what = format!(
                "the manager does not answer for 5 s; its last words:\n{}\nits threads:\n{}",
                tail(&self.manager.log(), 12),
                memory::whereabouts(pid)
            );
            self.witness.breach(Breach::NotBack, 1, &what);
        }
        None
    }

    /// Guests that are there, and those that should be.
    fn see_returns(&mut self, view: &View) {
        let now = self.clock.now();
        let rule = self.manager.life.as_ref();
        let Some((since, hunger)) = rule.and_then(|rule| Some((rule.sound?, rule.hunger.total()))) else {
            return;
        };
        for guest in &mut self.guests {
            let Some(life) = &mut guest.life else { continue };
            if !life.is_free() || !life.runs() {
                continue;
            }
            if !life.worked {
                // Its memory is full only now.
                life.worked = true;
                life.disturb(now);
            }
            let seen = view.guests.iter().find(|seen| seen.name == guest.kind.name);
            // Who comes back shows it by a report; who is there is there while its connection stands.
            let is_there = seen.is_some_and(|seen| {
                let reports = life.back || seen.report_age_seconds < REPORT_AGE;
                seen.pid == life.process.id() && seen.connected && reports
            });
            let mut waited = now.saturating_sub(life.sound.max(since));
            if !life.back {
                waited = waited.saturating_sub(life.starved(hunger));
            }
            match (is_there, life.back) {
                (true, false) => {
                    life.back = true;
                    life.returned = now;
                    guest.failures = 0;
                    self.tally.came_back(waited.as_secs_f64());
                }
                // Its manager had not heard yet that the connection of before had ended. The time to return goes on.
                (false, true) if now <= life.returned + HEARING => {
                    self.tally.count("returns_seen_too_soon");
                    life.back = false;
                }
                (false, true) => {
                    self.tally.count("lost_without_a_cause");
                    let known = seen.map(|seen| (seen.pid, seen.connected, seen.report_age_seconds));
                    let there = now.saturating_sub(life.returned);
                    self.witness.note(&format!(
                        "{} is away without a cause, after {there:.1?}: {known:?}",
                        guest.kind.name
                    ));
                    life.disturb(now);
                }
                (false, false) if waited > RETURN && !life.late => {
                    life.late = true;
                    let pid = life.process.id();
                    let what = away(guest, pid, seen, &self.manager.log());
                    self.witness.breach(Breach::NotBack, 1, &what);
                }
                _ => {}
            }
        }
    }

    /// Guests that fill their memory, or check it, come to an end with it.
    fn see_work(&mut self) {
        let now = self.clock.now();
        let rules = self.manager.life.as_ref().and_then(|rule| rule.sound);
        for guest in &mut self.guests {
            let name = guest.kind.name.clone();
            let log = guest.log().to_owned();
            if guest.failures > REFUSALS && rules.is_some_and(|since| now > since + WORK) {
                guest.failures = 0;
                let what = format!("{name} cannot start again");
                self.witness.breach(Breach::NotBack, 1, &what);
            }
            let Some(life) = &mut guest.life else { continue };
            if !life.is_free() {
                continue;
            }
            if !life.runs() && !life.late && rules.is_some() && now > life.began.max(life.sound) + WORK {
                life.late = true;
                let what = format!("{name} is not at work; its last words:\n{}", tail(&log, 6));
                self.witness.breach(Breach::NotBack, 1, &what);
            }
            if !life.has_checked()
                && life
                    .asked
                    .is_some_and(|(since, _)| now > since.max(life.sound) + WORK)
            {
                life.asked = None;
                let status = life.heard().status;
                let threads = memory::whereabouts(life.process.id());
                let what =
                    format!("{name} does not get through a check: {status:?}; its threads:\n{threads}");
                self.witness.breach(Breach::Stuck, 1, &what);
            }
        }
    }

    /// The manager must have a reference for each common copy that a guest has.
    fn count_references(&mut self, view: &View) {
        let statuses = self.guests.iter().map(|guest| {
            let life = guest.life.as_ref().filter(|life| life.back && life.is_free())?;
            life.heard().status.filter(|status| status.old_pools == 0)
        });
        let Some(statuses) = statuses.collect::<Option<Vec<_>>>() else {
            self.missing = 0;
            return;
        };
        self.tally.count("reference_samples");
        let shared: u64 = statuses.iter().map(|status| status.shared).sum();
        let references: u64 = view.host.domains.values().map(|domain| domain.references).sum();
        self.missing = match shared > references + MISSING.1 {
            true => self.missing + 1,
            false => 0,
        };
        if self.missing == MISSING.0 {
            let what = format!("guests have {shared} common copies and {references} references");
            self.witness
                .breach(Breach::ReferencesMissing, shared - references, &what);
        }
    }

    /// Weighs what all processes hold.
    fn weigh(&mut self, view: Option<&View>) {
        // A process that does not run its guest yet may not have been admitted.
        let lives = self.guests.iter().filter_map(|guest| guest.life.as_ref());
        let guests: Vec<u32> = lives
            .filter(|life| life.back || life.runs())
            .map(|life| life.process.id())
            .collect();
        let manager = self.manager.life.as_ref().map(|rule| rule.process.id());
        let held: Vec<u64> = guests.iter().map(|&pid| memory::held(pid)).collect();
        let ruler = manager.map_or(0, memory::held);
        let pools = memory::pools(guests.iter().copied().chain(manager));
        let used = held.iter().sum::<u64>() + ruler + pools;
        let (reason, now) = (self.excuse(), self.clock.now());
        let sample = self.budget.judge(used, reason, now);
        self.tally.count("budget.samples");
        let strict = self.budget.reason_at(now).is_none();
        self.tally
            .add("budget.samples_without_a_reason", u64::from(strict));
        match sample {
            Sample::Within => {}
            Sample::Explained(percent, why) => {
                self.tally.count(&format!("budget.explained.{}", why.name()));
                self.tally.over(percent);
            }
            Sample::Exceeded(percent) => {
                let limit = self.budget.bytes;
                let limits =
                    view.map(|view| view.guests.iter().map(|guest| (&guest.name, guest.limit_bytes)));
                let what = format!(
                    "{percent:.1} % more than {limit} in use: guests {held:?}, manager {ruler}, pools {pools}; the \
                     manager says {:?} free, {:?}, limits {:?}",
                    view.and_then(|view| view.host.free_bytes),
                    view.map(|view| view.host.spent),
                    limits.map(Iterator::collect::<Vec<_>>)
                );
                self.witness.breach(Breach::BudgetExceeded, 1, &what);
            }
        }
    }

    /// Why more than the budget may be in use now.
    fn excuse(&self) -> Option<Reason> {
        let Some(since) = self
            .manager
            .life
            .as_ref()
            .and_then(|rule| rule.is_free().then_some(rule.sound)?)
        else {
            return Some(Reason::NoManager);
        };
        let lives = || self.guests.iter().filter_map(|guest| guest.life.as_ref());
        // The next manager cannot tell a guest anything before that has found it; if it never does, that is a breach.
        let is_on_its_way = |life: &Life| life.began < since && life.is_free() && !life.back;
        if self.clock.now() <= since + RETURN && lives().any(is_on_its_way) {
            return Some(Reason::NoManager);
        }
        let changed = self.budget.cut.map_or(since, |cut| cut.max(since));
        let cannot_follow = |stopped: Duration| stopped < changed + FOLLOWING;
        if lives().any(|life| life.stopped.is_some_and(cannot_follow)) {
            return Some(Reason::GuestStopped);
        }
        None
    }
}

/// A guest that is not where it should be.
fn away(guest: &Guest, pid: u32, seen: Option<&GuestView>, manager_log: &Path) -> String {
    let seen = match seen {
        None => "the manager does not know it".to_owned(),
        Some(seen) => {
            let (connected, age) = (seen.connected, seen.report_age_seconds);
            format!("connected: {connected}, report of {age:.1} s ago")
        }
    };
    format!(
        "{} is not back after 5 s: {seen}; its last words:\n{}\nthe manager's:\n{}\nits threads:\n{}",
        guest.kind.name,
        tail(guest.log(), 6),
        tail(manager_log, 12),
        memory::whereabouts(pid)
    )
}
