//! The manager as a state machine: events in, effects out, time as an argument.
//!
//! It owns the registry with the policy, what each guest was told, who speaks on which connection, and when the next
//! round is due. It asks no clock, reads no socket and no file, starts no thread and holds no lock: [`crate::host`] finds
//! out what happens, and carries the effects out in their order.
//!
//! A round: [`Event::Clock`] when it is due, [`Effect::Measure`], [`Event::Measured`], the orders, and
//! [`Event::RoundEnded`].

mod connections;
mod event;
mod timing;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use allocator::{Group, GroupId, GuestId, Pages};
use log::Level;

pub(crate) use connections::SWEEP;
pub use event::{ConnectionId, Effect, Event, Heard};

use crate::above_limit::AboveLimit;
use crate::connection_limits::ConnectionLimits;
use crate::kept::KeptGuest;
use crate::listening_time::ListeningTime;
use crate::member::Limits;
use crate::policy::{Round, Settings};
use crate::registry::{ChangeError, Fate, ProcessId, Registry};
use crate::sent_orders::SentOrders;
use crate::standstill::Standstill;
use crate::statistics::Statistics;
use connections::Connections;
use levy_protocol::link::{FromManager, GroupLimits};
use timing::{AGAIN, RoundTiming};

/// All that a manager knows and decides.
#[derive(Debug)]
pub struct Manager {
    registry: Registry,
    sent_orders: SentOrders,
    timing: RoundTiming,
    stage: Stage,
    connections: Connections,
    connection_limits: ConnectionLimits,
    listening: ListeningTime,
    statistics: Statistics,
    /// Of the event that is handled.
    effects: Vec<Effect>,
}

/// How far a round has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// None is under way.
    Idle,
    /// What is held is measured, so long after the round before.
    Measuring(Duration),
    /// Orders are given; the next round is due after this.
    Ordered(Duration),
}

/// What the next manager has to know, at one time.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// How many guests had been admitted by then.
    pub admissions: u64,
    /// Groups that guests are in.
    pub groups: Vec<GroupLimits>,
    /// Guests.
    pub guests: Vec<KeptGuest>,
}

/// What an operator changes.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// The settings.
    Settings(Settings),
    /// A guest's limits.
    Limits(GuestId, Limits),
    /// A group's limits.
    Group(GroupId, Group),
}

impl Manager {
    /// A manager without guests at `now`. `backing` is how much swap and compression may be promised.
    pub fn new(now: Instant, settings: Settings, backing: Pages) -> Self {
        Self {
            registry: Registry::new(settings, backing),
            sent_orders: SentOrders::default(),
            timing: RoundTiming::new(now),
            stage: Stage::Idle,
            connections: Connections::default(),
            connection_limits: ConnectionLimits::default(),
            listening: ListeningTime::default(),
            statistics: Statistics::default(),
            effects: Vec::new(),
        }
    }

    /// What the next manager has to know now.
    pub fn snapshot(&self) -> Snapshot {
        let (groups, guests) = self.registry.kept();
        Snapshot {
            admissions: self.connections.admissions,
            groups,
            guests,
        }
    }

    /// Takes in what happened at `now`, and returns what is to be done for it, in this order.
    pub fn handle(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        match event {
            Event::TookOver(kept, fates) => {
                self.registry.take_over(&kept);
                self.connections.written = kept.guests;
                self.on_found(now, fates);
                self.registry.welcome_back();
            }
            Event::Found(fates) => self.on_found(now, fates),
            Event::Connected { connection, pid } => self.on_connected(now, connection, pid),
            Event::Introduced {
                connection,
                applicant,
                hung_up,
            } => self.on_introduced(now, connection, applicant, hung_up),
            Event::Said(connection, said) => self.on_said(now, connection, said),
            Event::Persisted(snapshot) => self.on_persisted(now, snapshot),
            Event::Unwelcomed(connection, error) => self.on_unwelcomed(now, connection, &error),
            Event::Listened => self.on_listened(now),
            Event::Unsent(guest, error) => self.on_unsent(now, guest, error),
            Event::Directed(guest, phase) => {
                if let Some(process) = self.registry.process_mut(guest) {
                    process.phase = phase;
                }
            }
            Event::LimitsChanged(guests) => self.on_limits_changed(&guests),
            Event::PagesEnded {
                guest,
                reason,
                offence,
            } => self.on_pages_ended(now, guest, (&reason, offence)),
            Event::Died(guest) => self.on_died(guest),
            Event::Clock => self.on_clock(now),
            Event::Measured(measured) => {
                self.registry.take_in(&measured);
                if let Stage::Measuring(elapsed) = self.stage {
                    let next = self.round(now, elapsed);
                    self.stage = Stage::Ordered(next);
                }
            }
            Event::RoundEnded { cpu, work } => {
                if let Stage::Ordered(next) = std::mem::replace(&mut self.stage, Stage::Idle) {
                    self.timing.end(cpu, next);
                    self.statistics.rounds.took(work);
                }
            }
            Event::Starved { what, reason } => {
                self.statistics.counters.starved += 1;
                let due = self.statistics.shortages.is_due(now);
                self.log_if(due, format_args!("{what}: {reason}"));
            }
            Event::Intruded(pid) => {
                self.statistics.counters.intruders += 1;
                let due = self.statistics.intrusions.is_due(now);
                let line = "which runs a guest, asked at the API; its guest may have taken it over";
                self.log_if(due, format_args!("process {pid}, {line}"));
            }
        }
        self.pass_remarks_on();
        std::mem::take(&mut self.effects)
    }

    /// Changes what an operator wants changed; the next round plans by it.
    ///
    /// # Errors
    /// When limits contradict each other or the budget; nothing has changed then.
    pub fn change(&mut self, change: Change) -> Result<(), ChangeError> {
        match change {
            Change::Settings(settings) => self.registry.set(settings),
            Change::Limits(guest, limits) => self.registry.set_limits(guest, limits),
            Change::Group(id, group) => self.registry.set_group(id, group),
        }
    }

    /// Whether process `pid` may have one more connection at `now`. If so, it has it until that is said to be over.
    pub fn lets_connect(&mut self, now: Instant, pid: u32) -> bool {
        let lets = self.connection_limits.enter(now, pid);
        self.statistics.counters.crowded += u64::from(!lets);
        lets
    }

    /// A connection of process `pid` is over that was never said to be one of a guest.
    pub fn disconnected(&mut self, pid: u32) {
        self.connection_limits.leave(pid);
    }

    /// See [`Registry::allow_several_in_one_process`].
    pub fn allow_several_in_one_process(&mut self) {
        self.registry.allow_several_in_one_process();
    }

    /// The guests and the policy over them.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// When the next round may be, and when it must be. [`Effect::StartEarlier`] says that it is due as soon as it may
    /// be.
    pub fn round_window(&self) -> (Instant, Instant) {
        self.timing.window()
    }

    /// When the next round is due.
    pub fn round_due(&self) -> Instant {
        self.timing.due()
    }

    /// What was counted and timed.
    pub(crate) fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn on_found(&mut self, now: Instant, fates: BTreeMap<ProcessId, Fate>) {
        let (changed, back) = self.registry.take_back(now, fates);
        let watched = back.into_iter();
        self.effects
            .extend(watched.map(|(guest, process)| Effect::Watch(guest, process)));
        if changed {
            self.effects.push(Effect::Persist);
        }
    }

    fn on_died(&mut self, guest: GuestId) {
        let left = self.registry.remove_dead(guest);
        self.sent_orders.forget(guest);
        self.effects.push(Effect::Forget(guest, left));
        self.effects.push(Effect::Persist);
    }

    fn on_unsent(&mut self, now: Instant, guest: GuestId, error: Option<String>) {
        self.sent_orders.forget(guest);
        if let Some(error) = error {
            self.statistics.counters.cut_offs += 1;
            let name = self.name(guest);
            self.say(
                now,
                Level::Warn,
                format_args!("{name:?} does not read what it is told, it is cut off: {error}"),
            );
        }
    }

    fn on_limits_changed(&mut self, guests: &[GuestId]) {
        for &guest in guests {
            if let Some(limits) = self.registry.limits(guest) {
                self.effects
                    .push(Effect::Send(guest, FromManager::Limits(limits)));
            }
        }
    }

    fn on_pages_ended(&mut self, now: Instant, guest: Option<GuestId>, (reason, offence): (&str, bool)) {
        let Some(guest) = guest else {
            return self.say_once(now, Level::Warn, reason);
        };
        let name = self.name(guest);
        let line = format!("{name:?} shares no more pages until it connects again: {reason}");
        self.say_once(now, Level::Warn, &line);
        if offence {
            self.cut_off(now, guest);
        }
    }

    fn on_clock(&mut self, now: Instant) {
        if self.stage != Stage::Idle || now < self.timing.due() {
            return;
        }
        let (gap, elapsed) = self.timing.begin(now);
        self.statistics.rounds.began(gap);
        self.stage = Stage::Measuring(elapsed);
        let bytes = |pages: Pages| pages.get().saturating_mul(4096);
        let guests = self.registry.guests();
        let allowed = guests.map(|(member, _)| (member.id, member.given().map(bytes)));
        let budget = bytes(self.registry.policy().settings().budget);
        self.effects.push(Effect::FollowBudget(budget, allowed.collect()));
        self.effects
            .push(Effect::Measure(self.registry.survey(), elapsed));
    }

    /// One round over what was measured: plans, and gives orders. Returns when the next one is due.
    fn round(&mut self, now: Instant, elapsed: Duration) -> Duration {
        let (next, pools) = match self.registry.round(elapsed) {
            Ok(Round { next, pools, .. }) => (*next, *pools),
            Err(error) => {
                let reason = self.registry.named(&error.to_string());
                let line = format!("no plan this second, the last orders stay: {reason}");
                if let Some(line) = self.statistics.repeats.admit(&line, now) {
                    self.effects.push(Effect::Log(Level::Error, line));
                }
                return AGAIN;
            }
        };
        self.effects
            .push(Effect::LimitPools(pools, self.registry.old_pools()));
        self.name_guests_in_trouble(now);
        for (member, process) in self.registry.guests() {
            // A guest that waits is answered, whatever the answer.
            if member.waits() {
                self.sent_orders.forget(member.id);
            }
            if self.sent_orders.is_news(now, member.id, &process.orders) {
                self.sent_orders.sent(now, member.id, process.orders);
                let orders = FromManager::Orders(process.orders);
                self.effects.push(Effect::Send(member.id, orders));
            }
        }
        next
    }

    /// Says which guests hold too much or get nothing, and why.
    fn name_guests_in_trouble(&mut self, now: Instant) {
        let mut lines = Vec::new();
        for (member, process) in self.registry.guests() {
            let name = &process.name;
            if let Some(above) = AboveLimit::of(member, process) {
                let cure = above.cure();
                lines.push(format!(
                    "{name:?} holds more than its limit and comes no closer to it: {above}; {cure}"
                ));
            }
            if let Some(standstill) = Standstill::of(member, process) {
                let cure = standstill.cure();
                lines.push(format!(
                    "{name:?} waits for memory and gets none: {standstill}; {cure}"
                ));
            }
        }
        for line in lines {
            self.say_once(now, Level::Warn, &line);
        }
    }

    /// A guest waits for a round.
    fn hurry(&mut self) {
        if self.timing.hurry() {
            self.effects.push(Effect::StartEarlier);
        }
    }

    /// Logs a line about a guest's process, if there were not too many.
    fn say(&mut self, now: Instant, level: Level, line: fmt::Arguments<'_>) {
        let Some(missed) = self.statistics.peer_lines.admit(now) else {
            return;
        };
        if missed > 0 {
            let line = format!("{missed} more messages about guests' processes were left out");
            self.effects.push(Effect::Log(Level::Warn, line));
        }
        self.effects.push(Effect::Log(level, line.to_string()));
    }

    /// The same for a line whose cause may be there again and again: said once, then counted.
    fn say_once(&mut self, now: Instant, level: Level, line: &str) {
        if let Some(line) = self.statistics.repeats.admit(line, now) {
            self.say(now, level, format_args!("{line}"));
        }
    }

    /// What a guest is called; its number once it is gone.
    fn name(&self, guest: GuestId) -> String {
        self.registry.named(&guest.to_string())
    }

    fn log_if(&mut self, due: bool, line: fmt::Arguments<'_>) {
        if due {
            self.effects.push(Effect::Log(Level::Warn, line.to_string()));
        }
    }

    fn pass_remarks_on(&mut self) {
        let remarks = self.registry.take_remarks().into_iter();
        self.effects
            .extend(remarks.map(|(level, line)| Effect::Log(level, line)));
    }
}

/// An error with all its reasons, on one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |e| e.source())
        .fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

#[cfg(test)]
mod tests;
