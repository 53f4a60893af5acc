//! A guest in the model: an honest process that wants more or less memory all the time, and has accidents.

use std::time::{Duration, Instant};

use allocator::Pages;

use super::random::Random;
use crate::manager::ConnectionId;
use crate::registry::ProcessId;
use levy_protocol::link::{Hello, LimitStatus, Orders, Report};

/// Guests in the model.
pub(super) const MOST: usize = 100;

const MIB: u64 = 1 << 20;

/// What a process holds that has just started.
const FIRST: Pages = Pages::from_mib(5);

/// Most that a guest gives up or takes between two reports.
const PACE: Pages = Pages::from_mib(64);

/// Time between two reports.
const REPORT: Duration = Duration::from_secs(1);

/// A silent guest does nothing for so long.
const LONG: Duration = Duration::from_secs(600);

/// What a guest does next.
#[derive(Debug)]
pub(super) enum Deed {
    Rest,
    Start,
    Connect,
    Report,
    Say(LimitStatus),
    HangUp,
    Offend,
    Die,
}

/// A guest, whose process runs or not.
#[derive(Debug)]
pub(super) struct Guest {
    number: usize,
    pub(super) running: Option<Running>,
    /// When it does something next.
    pub(super) due: Instant,
    pub(super) is_silent: bool,
}

/// A guest's process.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) process: ProcessId,
    /// Its connection, and when it last spoke there.
    pub(super) connection: Option<(ConnectionId, Instant)>,
    /// The limit that holds, bytes.
    limit: Option<u64>,
    /// That is of a manager that is gone.
    is_inherited: bool,
    /// The last order, and when it is heard.
    ordered: Option<(Instant, u64)>,
    pub(super) held: Pages,
    wants: Pages,
    said: LimitStatus,
}

impl Running {
    pub(super) fn new(process: ProcessId) -> Self {
        Self {
            process,
            connection: None,
            limit: None,
            is_inherited: false,
            ordered: None,
            held: FIRST,
            wants: FIRST,
            said: LimitStatus::default(),
        }
    }

    /// The limit that it was given by the manager that is here. One of the manager before it does not use up: how much it
    /// is, the next one does not know before it has given another.
    pub(super) fn limit(&self) -> Option<Pages> {
        let limit = self.limit.filter(|_| !self.is_inherited)?;
        Some(Pages::new(limit / 4096))
    }

    /// Follows the orders that it has heard by `now`, and takes what it wants within its limit.
    fn follow(&mut self, now: Instant) {
        if let Some((_, bytes)) = self.ordered.take_if(|(due, _)| *due <= now) {
            (self.limit, self.is_inherited) = (Some(bytes), false);
        }
        let Some(limit) = self.limit() else { return };
        self.held = match self.held > limit {
            true => limit.max(self.held.less(PACE)),
            false => self.wants.min(limit).max(FIRST.min(limit)),
        };
    }

    fn status(&self) -> LimitStatus {
        LimitStatus {
            limit_bytes: self.limit,
            gated: false,
            waiting: u64::from(self.wants > self.held),
        }
    }
}

impl Guest {
    pub(super) fn new(number: usize, now: Instant) -> Self {
        Self {
            number,
            running: None,
            due: now,
            is_silent: false,
        }
    }

    /// How it introduces itself; its size, minimum and group follow from its number.
    pub(super) fn hello(&self) -> Hello {
        let size = (128 * MIB) << (self.number % 3);
        Hello::new(format!("g{}", self.number), size)
            .with_min(16 * MIB)
            .with_shares(500 << (self.number % 4))
    }

    pub(super) fn is_run_by(&self, process: ProcessId) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.process == process)
    }

    /// Its manager is gone, and it looks for the next one at `due`.
    pub(super) fn lose_manager(&mut self, due: Instant) {
        if let Some(running) = &mut self.running {
            (running.connection, running.ordered, running.is_inherited) = (None, None, true);
            self.due = due;
        }
    }

    /// An order comes, which is heard at `due`.
    pub(super) fn hear(&mut self, orders: &Orders, due: Instant) {
        let running = self.running.as_mut();
        if let (Some(running), Some(bytes)) = (running, orders.limit_bytes) {
            running.ordered = Some((due, bytes));
            if !self.is_silent {
                self.due = self.due.min(due);
            }
        }
    }

    pub(super) fn report(&self) -> Option<Report> {
        let mut report = Report::default();
        report.pages.private = self.running.as_ref()?.held.less(FIRST).get();
        Some(report)
    }

    /// What it does at `now`, where `wanted` guests are to be there.
    pub(super) fn next(&mut self, random: &mut Random, now: Instant, wanted: usize) -> Deed {
        self.due = now + REPORT;
        let Some(running) = &mut self.running else {
            self.due = now + Duration::from_millis(random.below(20_000));
            return match self.number < wanted {
                true => Deed::Start,
                false => Deed::Rest,
            };
        };
        let odds = if self.number < wanted { 2000 } else { 10 };
        if random.chance(odds) {
            self.is_silent = false;
            return Deed::Die;
        }
        if self.is_silent {
            return Deed::Rest;
        }
        if running.connection.is_none() {
            return Deed::Connect;
        }
        running.follow(now);
        if random.chance(20) {
            let size = 128 << (self.number % 3);
            running.wants = Pages::from_mib(5 + random.below(size));
        }
        let status = running.status();
        if status != running.said {
            running.said = status;
            return Deed::Say(status);
        }
        match random.below(4000) {
            0 | 1 => Deed::HangUp,
            2..5 => Deed::Offend,
            5..10 => {
                (self.is_silent, self.due) = (true, now + LONG);
                Deed::Rest
            }
            _ => Deed::Report,
        }
    }
}
