//! What is done to a fleet.

use std::time::Duration;

use levy_protocol::api::GuestChange;

use crate::assigned::Change;
use crate::budget::Weak;
use crate::fleet::Fleet;
use crate::guest::{Guest, Life};
use crate::later::Deed;
use crate::memory;
use crate::quota::{Action, Length};
use crate::strain::Strain;
use crate::tally::Breach;
use crate::thief::{Door, Loot};

/// After this long without a word a manager cuts a guest off: a stall that is longer is a long one.
const SILENCE: Duration = Duration::from_secs(30);

/// Pages by which a guest's minimum is lowered at most: too few to matter where it is judged.
const LESS: u64 = 64;

impl Fleet {
    /// Does one thing; whether there was something to do it to.
    pub(crate) fn perform(&mut self, action: Action) -> anyhow::Result<bool> {
        match action {
            Action::KillManager => self.kill_manager(),
            Action::KillGuest => self.kill_guest(),
            Action::StallManager(length) => Ok(self.stall_manager(length)),
            Action::StallGuest(length) => Ok(self.stall_guest(length)),
            Action::InterruptManager => self.interrupt_manager(),
            Action::CloseSocket => Ok(self.close_socket()),
            Action::ChangeBudget => self.change_budget(),
            Action::ChangeShares => self.change_shares(),
            Action::Impostor => self.impostor(),
            Action::Strain => Ok(self.put_strain()),
        }
    }

    /// Does what was put off.
    pub(crate) fn act(&mut self, deed: Deed) -> anyhow::Result<()> {
        match deed {
            Deed::StartManager if self.manager.life.is_none() => self.start_manager()?,
            Deed::StartGuest(place) if self.guests[place].life.is_none() => self.start_guest(place)?,
            Deed::StartManager | Deed::StartGuest(_) => {}
            Deed::ManagerGoesOn(again) => {
                self.wake_manager();
                if let Some((after, length)) = again {
                    self.later.after(after, Deed::ManagerStops(length));
                }
            }
            Deed::ManagerStops(length) => self.stop_manager((length, Length::Middle), None),
            Deed::GuestGoesOn(place) => self.wake_guest(place),
            Deed::Ease => self.ease(),
            Deed::Speak(loot, times) => self.speak(loot, times),
        }
        Ok(())
    }

    fn kill_manager(&mut self) -> anyhow::Result<bool> {
        let rule = self
            .manager
            .life
            .take_if(|rule| !rule.process.is_stopped_for_long());
        let Some(mut rule) = rule else { return Ok(false) };
        self.witness.note("the manager is killed");
        self.note_stall(rule.process.stopped_for());
        rule.process.kill();
        self.tally.count("kills");
        self.tally.count("actions.kill_manager");
        self.manager_is_gone();
        Ok(true)
    }

    fn interrupt_manager(&mut self) -> anyhow::Result<bool> {
        let rule = self.manager.life.take_if(|rule| !rule.process.is_stopped());
        let Some(mut rule) = rule else { return Ok(false) };
        self.witness.note("the manager is told to end");
        self.tally.count("actions.interrupt_manager");
        rule.process.interrupt();
        let mut ended = None;
        self.live_until(Duration::from_secs(10), |_| {
            ended = rule.process.ended().ok().flatten();
            ended.is_some()
        })?;
        if !ended.is_some_and(|status| status.success()) && !self.is_interrupted() {
            let threads = memory::whereabouts(rule.process.id());
            let what = format!("a manager that was told to end: {ended:?}; its threads:\n{threads}");
            self.witness.breach(Breach::Abort, 1, &what);
        }
        self.manager_is_gone();
        Ok(true)
    }

    fn manager_is_gone(&mut self) {
        self.later.forget_manager();
        if matches!(&self.strain, Some(strain) if strain.pid().is_some()) {
            self.ease();
        }
        self.disturb_all();
        let away = match self.random.one_of(1, 8) {
            true => self.random.millis(4_000..=15_000),
            false => self.random.millis(0..=1_500),
        };
        self.later.start_manager(away);
    }

    fn kill_guest(&mut self) -> anyhow::Result<bool> {
        let place = self.one_of_living(|life| !life.process.is_stopped_for_long());
        let Some(place) = place else { return Ok(false) };
        let (steals, rest) = (self.random.one_of(1, 3), self.random.millis(0..=1_500));
        let at_once = self.random.one_of(1, 3);
        let Some(mut life) = self.guests[place].life.take() else {
            return Ok(false);
        };
        let loot = steals.then(|| Loot::take(life.process.pid()).ok()).flatten();
        let sockets = loot.as_ref().map_or(0, Loot::len);
        let name = &self.guests[place].kind.name;
        self.witness.note(&format!(
            "{name} is killed, {sockets} of its sockets in strange hands"
        ));
        self.note_stall(life.process.stopped_for());
        life.process.kill();
        self.tally.count("kills");
        self.tally.count("actions.kill_guest");
        self.later.forget_guest(place);
        let rest = if at_once { Duration::ZERO } else { rest };
        self.later.start_guest(place, rest);
        if let Some(loot) = loot.filter(|_| sockets > 0) {
            self.tally.count("actions.steal_sockets");
            self.tally.add("stolen.sockets", sockets as u64);
            // Mostly when another process runs under the name.
            let after = rest + self.random.millis(0..=2_500);
            self.later.after(after, Deed::Speak(loot, 4));
        }
        Ok(true)
    }

    fn speak(&mut self, loot: Loot, times: u32) {
        // Nothing answers a thief there, and each word would be waited for.
        if self
            .manager
            .life
            .as_ref()
            .is_some_and(super::manager::Rule::is_free)
        {
            let (said, answered) = loot.speak(&mut self.random);
            self.witness
                .note(&format!("a thief says {said} words, {answered} are answered"));
            self.tally.add("stolen.words", said);
            self.tally.add("stolen.answers", answered);
        }
        if times > 0 {
            let after = self.random.millis(300..=1_200);
            self.later.after(after, Deed::Speak(loot, times - 1));
        }
    }

    fn stall_manager(&mut self, length: Length) -> bool {
        let runs = self
            .manager
            .life
            .as_ref()
            .is_some_and(|rule| !rule.process.is_stopped());
        if !runs || self.later.stops_manager() {
            return false;
        }
        let time = self.time_of(length);
        // What comes back in the gap comes into the next stall. After a long one all guests do, a second later; they give up
        // waiting after five.
        let again = match length {
            Length::Long if self.random.one_of(1, 2) => {
                Some((self.random.millis(200..=900), self.random.millis(6_500..=10_000)))
            }
            _ if self.random.one_of(1, 3) => {
                Some((self.random.millis(100..=1_500), self.random.millis(1_000..=9_500)))
            }
            _ => None,
        };
        self.tally.count("actions.stall_manager");
        self.tally
            .add("actions.stall_manager_twice", u64::from(again.is_some()));
        self.stop_manager((time, length), again);
        true
    }

    fn stop_manager(&mut self, (time, length): (Duration, Length), again: Option<(Duration, Duration)>) {
        let Some(rule) = &mut self.manager.life else {
            return;
        };
        self.witness.note(&format!(
            "the manager stops for {time:.1?}, again after {again:?}"
        ));
        rule.process.stop(length);
        self.later.after(time, Deed::ManagerGoesOn(again));
    }

    fn wake_manager(&mut self) {
        let now = self.clock.now();
        let Some(rule) = &mut self.manager.life else {
            return;
        };
        let Some(time) = rule.process.go_on() else { return };
        rule.silent = None;
        rule.sound = rule.sound.map(|_| now);
        self.witness
            .note(&format!("the manager goes on after {time:.1?}"));
        self.note_stall(Some(time));
        self.disturb_all();
    }

    fn stall_guest(&mut self, length: Length) -> bool {
        let Some(place) = self.one_of_living(|life| !life.process.is_stopped()) else {
            return false;
        };
        let time = self.time_of(length);
        let (guest, now) = (&mut self.guests[place], self.clock.now());
        let Some(life) = &mut guest.life else { return false };
        self.witness
            .note(&format!("{} stops for {time:.1?}", guest.kind.name));
        self.tally.count("actions.stall_guest");
        life.process.stop(length);
        life.stopped = Some(now);
        self.later.after(time, Deed::GuestGoesOn(place));
        true
    }

    /// A guest that was stopped goes on.
    fn wake_guest(&mut self, place: usize) {
        let (guest, now) = (&mut self.guests[place], self.clock.now());
        let Some(life) = &mut guest.life else { return };
        let Some(time) = life.process.go_on() else { return };
        life.stopped = None;
        life.disturb(now);
        self.witness
            .note(&format!("{} goes on after {time:.1?}", guest.kind.name));
        self.note_stall(Some(time));
    }

    fn note_stall(&self, time: Option<Duration>) {
        let Some(time) = time else { return };
        self.tally.count("stalls");
        self.tally.add("long_stalls", u64::from(time > SILENCE));
    }

    fn time_of(&mut self, length: Length) -> Duration {
        match length {
            Length::Short => self.random.millis(50..=2_500),
            Length::Middle => self.random.millis(5_000..=12_000),
            Length::Long => self.random.millis(30_500..=37_000),
        }
    }

    fn close_socket(&mut self) -> bool {
        let door = match self.random.one_of(1, 2) {
            true => Door::Guests,
            false => Door::Pages,
        };
        let Some(place) = self.one_of_living(|_| true) else {
            return false;
        };
        let (guest, now) = (&mut self.guests[place], self.clock.now());
        let Some(life) = &mut guest.life else { return false };
        let shut = Loot::take(life.process.pid()).map_or(0, |loot| loot.shut(door));
        if shut > 0 {
            self.witness
                .note(&format!("{} loses its connection: {door:?}", guest.kind.name));
            life.disturb(now);
            self.tally.count("actions.close_socket");
        }
        shut > 0
    }

    fn change_budget(&mut self) -> anyhow::Result<bool> {
        if !self.rules() || matches!(self.strain, Some(Strain::Disk(_))) {
            return Ok(false);
        }
        let weak = self
            .guests
            .iter()
            .flat_map(|guest| &guest.life)
            .any(|life| life.weak);
        let weak = if weak { Weak::One } else { Weak::None };
        let least = self.budget.least_mib(weak);
        let mib = self.random.within(least..=self.budget.ample_mib().max(least));
        let before = self.budget.bytes;
        // It holds as soon as it is said.
        self.budget.is_told(mib << 20, self.clock.now());
        let changed = self.manager.set_budget(mib << 20);
        let accepted = changed == Change::Kept;
        self.witness.note(&format!(
            "budget of {} MiB to {mib} MiB: {changed:?}",
            before >> 20
        ));
        self.tally.count("actions.change_budget");
        self.tally.add("budget.changes_accepted", u64::from(accepted));
        if !accepted {
            self.budget.bytes = before;
        }
        Ok(true)
    }

    fn change_shares(&mut self) -> anyhow::Result<bool> {
        if !self.rules() {
            return Ok(false);
        }
        let place = self.random.place(self.guests.len());
        let (shares, less) = (self.random.within(100..=4_000), self.random.within(0..=LESS));
        let Guest { kind, life, .. } = &mut self.guests[place];
        let min_bytes = (kind.min_mib << 20) - less * 4096;
        let name = &kind.name;
        let change = GuestChange {
            shares: Some(shares as u32),
            min_bytes: Some(min_bytes),
        };
        let answer = self.manager.client().change_guest(name, &change);
        let changed = self.manager.became(answer);
        if let Some(life) = life {
            // Else it may be those of the process before that were changed.
            let changed = match changed {
                Change::Kept if !life.back => Change::Unsure,
                changed => changed,
            };
            life.shares.set(shares, changed);
            life.min_bytes.set(min_bytes, changed);
        }
        self.witness.note(&format!(
            "{name} to {shares} shares, {min_bytes} at least: {changed:?}"
        ));
        self.tally.count("actions.change_shares");
        Ok(true)
    }

    /// A process says that it is one of the guests, or what no guest says.
    fn impostor(&mut self) -> anyhow::Result<bool> {
        if !self.rules() {
            return Ok(false);
        }
        let place = self.random.place(self.guests.len());
        let name = &self.guests[place].kind.name;
        let heard = crate::impostor::pretend(self.manager.dir(), name, self.random.number())?;
        self.witness
            .note(&format!("an impostor says it is {name}: {heard}"));
        self.tally.count("actions.impostor");
        Ok(true)
    }

    /// A process, or the disk, runs out of something for a while.
    fn put_strain(&mut self) -> bool {
        if self.strain.is_some() || !self.is_settled() {
            return false;
        }
        let (kind, spare) = (self.random.within(0..=3), self.random.within(0..=2));
        let place = self.random.place(self.guests.len());
        let guest = self.guests[place].life.as_mut().map(|life| life.process.pid());
        let manager = self.manager.life.as_ref().map(|rule| rule.process.pid());
        let (Some(guest), Some(manager)) = (guest, manager) else {
            return false;
        };
        let strain = match kind {
            0 => Strain::descriptors(manager, spare),
            1 => Strain::threads(manager, spare as usize),
            2 => Strain::descriptors(guest, spare),
            _ if self.budget.bytes < (self.budget.ample_mib() * 4 / 5) << 20 => return false,
            _ => Strain::disk(self.swap.path()),
        };
        let name = ["manager_files", "manager_threads", "guest_files", "disk_full"][kind as usize];
        match strain {
            Ok(strain) => self.strain = Some(strain),
            Err(error) => {
                self.tally.skip(&format!("{name}: {error}"));
                return false;
            }
        }
        self.witness.note(&format!("out of {name}, {spare} to spare"));
        self.tally.count(&format!("actions.out_of_{name}"));
        if let Some(rule) = self.manager.life.as_mut().filter(|_| kind <= 1) {
            rule.strained = true;
        }
        if let Some(life) = self.guests[place].life.as_mut().filter(|_| kind == 2) {
            life.strained = true;
        }
        let time = self.random.millis(1_500..=6_000);
        self.later.after(time, Deed::Ease);
        // New connections are what needs descriptors and threads.
        if kind <= 2 {
            self.close_socket();
        }
        true
    }

    /// Whether a manager answers.
    fn rules(&self) -> bool {
        let rule = self.manager.life.as_ref();
        rule.is_some_and(|rule| rule.is_free() && rule.sound.is_some())
    }

    /// The place of a guest that runs, and is as `wanted`.
    fn one_of_living(&mut self, wanted: impl Fn(&Life) -> bool) -> Option<usize> {
        let places = self.guests.iter().enumerate().filter(|(_, guest)| {
            let life = guest.life.as_ref();
            life.is_some_and(|life| life.runs() && wanted(life))
        });
        let places: Vec<usize> = places.map(|(place, _)| place).collect();
        places.get(self.random.place(places.len())).copied()
    }
}
