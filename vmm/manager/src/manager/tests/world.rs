//! A host in a model: guests' processes, their connections and memory, and the clock. It checks after each event what
//! must hold whatever happens.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use allocator::{GuestId, Pages};

use super::guest::{Deed, Guest, MOST, Running};
use super::random::Random;
use crate::kept::{Kept, KeptSettings};
use crate::manager::{ConnectionId, Effect, Event, Heard, Manager};
use crate::policy::Settings;
use crate::registry::{Applicant, Fate, ProcessId};
use crate::survey::{Measured, Surveyed};
use levy_protocol::link::{FromManager, LimitStatus};
use levy_protocol::process_memory::{Counted, Held};

/// A guest that waits has a round within this time.
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// A silent connection ends after 30 s, as far as looks at who is silent are apart.
const SILENCE: [Duration; 2] = [Duration::from_secs(30), Duration::from_millis(31_000)];

/// The longest pause between two looks of the thread that listens.
const LOOK: Duration = Duration::from_millis(500);

/// What the manager itself takes.
const MANAGER: Pages = Pages::from_mib(20);

/// What happened so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) admitted: u64,
    pub(super) refused: u64,
    pub(super) rounds: u64,
    pub(super) orders: u64,
    pub(super) deaths: u64,
    pub(super) cut_off_silent: u64,
    pub(super) offences: u64,
    pub(super) waits: u64,
    pub(super) managers: u64,
}

/// The host.
pub(super) struct World {
    pub(super) now: Instant,
    pub(super) began: Instant,
    pub(super) random: Random,
    pub(super) tally: Tally,
    manager: Manager,
    settings: Settings,
    guests: Vec<Guest>,
    /// The guest that each process number runs.
    by_pid: BTreeMap<u32, usize>,
    /// Which process the manager has made which guest.
    watched: BTreeMap<GuestId, ProcessId>,
    next_connection: ConnectionId,
    started: u64,
    look: Instant,
    /// The round under way ends then.
    round_ends: Option<Instant>,
    /// Since when a guest waits that has had no round since.
    waiting: Option<Instant>,
}

impl World {
    pub(super) fn new(seed: u64, guests: usize, budget: Pages) -> Self {
        let (now, settings) = (Instant::now(), Settings::new(budget));
        Self {
            now,
            began: now,
            random: Random::new(seed),
            tally: Tally::default(),
            manager: Manager::new(now, settings, Pages::from_mib(1 << 20)),
            settings,
            guests: (0..guests).map(|number| Guest::new(number, now)).collect(),
            by_pid: BTreeMap::new(),
            watched: BTreeMap::new(),
            next_connection: 0,
            started: 0,
            look: now,
            round_ends: None,
            waiting: None,
        }
    }

    pub(super) fn alive(&self) -> usize {
        self.guests.iter().filter(|guest| guest.running.is_some()).count()
    }

    /// Lets `time` pass, in which guests start so that about `wanted` are there.
    pub(super) fn run(&mut self, time: Duration, wanted: usize) {
        let end = self.now + time;
        while self.now < end {
            self.advance(end);
            self.round();
            if self.now >= self.look {
                self.look = self.now + LOOK;
                self.happen(Event::Listened);
            }
            for number in 0..self.guests.len() {
                if self.guests[number].due <= self.now {
                    let deed = self.guests[number].next(&mut self.random, self.now, wanted);
                    self.act(number, deed);
                }
            }
        }
    }

    /// On to the next moment at which something happens.
    fn advance(&mut self, end: Instant) {
        let guests = self.guests.iter().map(|guest| guest.due);
        let round = self.round_ends.unwrap_or_else(|| self.manager.round_due());
        let next = guests.chain([round, self.look, end]).min();
        self.now = next.unwrap_or(end).max(self.now);
    }

    fn round(&mut self) {
        match self.round_ends {
            Some(ends) if ends <= self.now => {
                self.round_ends = None;
                let cpu = Duration::from_micros(self.random.below(15_000));
                self.happen(Event::RoundEnded { cpu, work: cpu });
            }
            None => self.happen(Event::Clock),
            Some(_) => {}
        }
    }

    fn act(&mut self, number: usize, deed: Deed) {
        match deed {
            Deed::Rest => {}
            Deed::Start => self.start(number),
            Deed::Connect => self.connect(number),
            Deed::Report => self.report(number),
            Deed::Say(status) => self.say(number, Heard::LimitStatus(status)),
            Deed::HangUp => {
                self.say(number, Heard::Closed);
                self.disconnect(number);
            }
            Deed::Offend => {
                self.say(number, Heard::Malformed("malformed message".into()));
                self.tally.offences += 1;
            }
            Deed::Die => self.die(number),
        }
    }

    /// A process starts, under a number that another may have had.
    fn start(&mut self, number: usize) {
        let pid = self.free_pid();
        self.started += 1;
        let process = ProcessId {
            pid,
            started: self.started,
        };
        self.by_pid.insert(pid, number);
        self.guests[number].running = Some(Running::new(process));
        self.connect(number);
    }

    fn free_pid(&mut self) -> u32 {
        loop {
            let pid = 2 + self.random.below(200) as u32;
            if !self.by_pid.contains_key(&pid) {
                return pid;
            }
        }
    }

    fn connect(&mut self, number: usize) {
        let (now, hello) = (self.now, self.guests[number].hello());
        let Some(running) = &mut self.guests[number].running else {
            return;
        };
        let process = running.process;
        if !self.manager.lets_connect(now, process.pid) {
            return;
        }
        self.next_connection += 1;
        let connection = self.next_connection;
        running.connection = Some((connection, now));
        let pid = process.pid;
        self.happen(Event::Connected { connection, pid });
        let applicant = Applicant {
            hello,
            process,
            domain: Ok(()),
            swap_device: None,
        };
        // That the connection before is closed may be seen only now.
        let hung_up = true;
        self.happen(Event::Introduced {
            connection,
            applicant: Ok(applicant),
            hung_up,
        });
    }

    fn report(&mut self, number: usize) {
        if let Some(report) = self.guests[number].report() {
            self.say(number, Heard::Report(Box::new(report), None));
        }
    }

    fn say(&mut self, number: usize, said: Heard) {
        let now = self.now;
        let running = self.guests[number].running.as_mut();
        let connection = running.and_then(|running| running.connection.as_mut());
        if let Some((connection, spoke)) = connection {
            *spoke = now;
            let connection = *connection;
            self.happen(Event::Said(connection, said));
        }
    }

    fn disconnect(&mut self, number: usize) {
        if let Some(running) = &mut self.guests[number].running {
            running.connection = None;
        }
    }

    /// Its connection closes before the proof of its death or after it, or both are seen at once.
    fn die(&mut self, number: usize) {
        if self.random.chance(2) {
            self.say(number, Heard::Closed);
        }
        let Some(running) = self.guests[number].running.take() else {
            return;
        };
        self.by_pid.remove(&running.process.pid);
        self.tally.deaths += 1;
        let dead: Vec<GuestId> = (self.watched.iter())
            .filter(|(_, process)| **process == running.process)
            .map(|(&guest, _)| guest)
            .collect();
        for guest in dead {
            self.watched.remove(&guest);
            self.happen(Event::Died(guest));
            assert!(self.manager.registry().member(guest).is_none());
        }
        if let Some((connection, _)) = running.connection {
            self.happen(Event::Said(connection, Heard::Closed));
        }
    }

    /// The manager ends, and the next one takes over what it kept.
    pub(super) fn replace_manager(&mut self) {
        let (groups, guests) = self.manager.registry().kept();
        let kept = Kept::new(KeptSettings::default(), groups, guests);
        let fates = kept.guests.iter().map(|guest| (guest.process(), Fate::Lives));
        let fates: BTreeMap<ProcessId, Fate> = fates.collect();
        self.manager = Manager::new(self.now, self.settings, Pages::from_mib(1 << 20));
        (self.round_ends, self.waiting) = (None, None);
        self.watched.clear();
        for number in 0..self.guests.len() {
            let due = self.now + Duration::from_millis(300 + self.random.below(1000));
            self.guests[number].lose_manager(due);
        }
        let survey = self.manager.registry().survey();
        assert!(survey.is_empty());
        self.happen(Event::TookOver(kept, fates));
        let survey = self.manager.registry().survey();
        let measured = self.measure(&survey);
        self.happen(Event::Measured(measured));
        self.happen(Event::Listened);
        self.tally.managers += 1;
    }

    fn measure(&self, processes: &[Surveyed]) -> Measured {
        let held = |surveyed: &Surveyed| {
            let running = self.running_as(self.watched.get(&surveyed.id)?)?;
            let held = Held {
                anonymous: running.held.get() * 4096,
                page_tables: 0,
            };
            let mappings = Some(0);
            Some((surveyed.id, Counted { held, mappings }))
        };
        Measured {
            counted: processes.iter().filter_map(held).collect(),
            pools: Pages::ZERO,
            old_pools: Pages::ZERO,
            misses_pools: false,
            manager: MANAGER,
        }
    }

    fn running_as(&self, process: &ProcessId) -> Option<&Running> {
        let running = self.guests[*self.by_pid.get(&process.pid)?].running.as_ref()?;
        (running.process == *process).then_some(running)
    }

    /// Hands an event to the manager, carries the effects out and checks what holds after that.
    fn happen(&mut self, event: Event) {
        let waits = matches!(
            &event,
            Event::Said(_, Heard::LimitStatus(LimitStatus { waiting: 1.., .. }))
        );
        let effects = self.manager.handle(self.now, event);
        if waits && self.waiting.is_none() {
            self.waiting = Some(self.now);
            self.tally.waits += 1;
        }
        for effect in effects {
            self.carry_out(effect);
        }
        self.check();
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Watch(guest, process) => {
                let before = self.watched.insert(guest, process);
                assert!(
                    before.is_none_or(|before| before == process),
                    "{guest} is another's"
                );
            }
            Effect::Persist => self.happen(Event::Persisted(self.manager.snapshot())),
            Effect::Welcome { guest, .. } => {
                assert!(self.watched.contains_key(&guest));
                self.tally.admitted += 1;
            }
            Effect::Reply(_, FromManager::Refused { .. }) => self.tally.refused += 1,
            Effect::Send(guest, FromManager::Orders(orders)) => {
                self.tally.orders += 1;
                let process = *self.watched.get(&guest).expect("an order to a guest that lives");
                let known = self
                    .manager
                    .registry()
                    .guests()
                    .find(|(member, _)| member.id == guest);
                assert_eq!(known.map(|(_, known)| known.id), Some(process));
                let due = self.now + Duration::from_millis(1 + self.random.below(30));
                let mut guests = self.guests.iter_mut();
                let guest = guests
                    .find(|guest| guest.is_run_by(process))
                    .expect("its process runs");
                guest.hear(&orders, due);
            }
            Effect::Close(connection) => self.closed(connection),
            Effect::HangUp(guest) => {
                let process = self.watched.get(&guest).copied();
                let number = self
                    .guests
                    .iter()
                    .position(|known| process.is_some_and(|process| known.is_run_by(process)));
                if let Some(number) = number {
                    self.disconnect(number);
                }
            }
            Effect::Measure(processes, _) => self.measured(&processes),
            Effect::StartEarlier => assert!(self.manager.round_due() <= self.now + LONGEST_WAIT),
            _ => {}
        }
    }

    /// A round begins and is carried out at once but for what it takes.
    fn measured(&mut self, processes: &[Surveyed]) {
        if let Some(since) = self.waiting.take() {
            let waited = self.now - since;
            assert!(waited <= LONGEST_WAIT, "a guest waited {waited:?} for a round");
        }
        self.tally.rounds += 1;
        self.round_ends = Some(self.now + Duration::from_micros(self.random.below(15_000)));
        let measured = self.measure(processes);
        self.happen(Event::Measured(measured));
    }

    fn closed(&mut self, connection: ConnectionId) {
        let now = self.now;
        for guest in &mut self.guests {
            if let Some(running) = &mut guest.running
                && let Some((_, spoke)) = running.connection.filter(|(number, _)| *number == connection)
            {
                running.connection = None;
                if guest.is_silent && now > spoke {
                    assert!(now - spoke >= SILENCE[0], "cut off after {:?}", now - spoke);
                    self.tally.cut_off_silent += 1;
                }
                guest.is_silent = false;
                guest.due = now + Duration::from_secs(1);
            }
        }
    }

    /// What holds whatever happened.
    fn check(&self) {
        let registry = self.manager.registry();
        let mut limits = MANAGER;
        for (member, process) in registry.guests() {
            let running = self.running_as(&process.id);
            // A process that is dead and not yet known to be holds nothing.
            let Some(running) = running else { continue };
            assert_eq!(self.watched.get(&member.id), Some(&process.id));
            limits += running.held.max(running.limit().unwrap_or_default());
            if let Some(limit) = running.limit() {
                let own = member.given().is_some_and(|given| limit <= given);
                assert!(own, "{} has the limit of another", member.id);
            }
            if let Some((_, spoke)) = running.connection {
                let silence = self.now - spoke;
                assert!(
                    silence <= SILENCE[1],
                    "{} is silent for {silence:?}",
                    process.name
                );
            }
        }
        let budget = self.settings.budget;
        assert!(limits <= budget, "limits of {limits} in a budget of {budget}");
        assert!(registry.guests().count() <= MOST);
        if let Some(since) = self.waiting {
            assert!(self.now - since <= LONGEST_WAIT, "no round while a guest waits");
        }
    }
}
