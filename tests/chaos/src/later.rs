//! What is to be done to a fleet in a while.

use std::time::{Duration, Instant};

use crate::thief::Loot;

/// One thing.
#[derive(Debug)]
pub(crate) enum Deed {
    StartManager,
    StartGuest(usize),
    /// The manager goes on; it stops again after the first time, for the second.
    ManagerGoesOn(Option<(Duration, Duration)>),
    /// The manager stops for this time.
    ManagerStops(Duration),
    GuestGoesOn(usize),
    /// What is short is there again.
    Ease,
    /// A thief speaks, and this many times more.
    Speak(Loot, u32),
}

#[derive(Debug, Default)]
pub(crate) struct Later(Vec<(Instant, Deed)>);

impl Later {
    pub(crate) fn after(&mut self, time: Duration, deed: Deed) {
        self.0.push((Instant::now() + time, deed));
    }

    pub(crate) fn start_manager(&mut self, after: Duration) {
        self.after(after, Deed::StartManager);
    }

    pub(crate) fn start_guest(&mut self, place: usize, after: Duration) {
        self.after(after, Deed::StartGuest(place));
    }

    /// The next thing that is due.
    pub(crate) fn due(&mut self) -> Option<Deed> {
        let now = Instant::now();
        let due = self.0.iter().enumerate().filter(|(_, (when, _))| *when <= now);
        let (place, _) = due.min_by_key(|(_, (when, _))| *when)?;
        Some(self.0.swap_remove(place).1)
    }

    /// The manager's process is gone: nothing of this is for the next one.
    pub(crate) fn forget_manager(&mut self) {
        self.0
            .retain(|(_, deed)| !matches!(deed, Deed::ManagerGoesOn(_) | Deed::ManagerStops(_)));
    }

    /// A guest's process is gone.
    pub(crate) fn forget_guest(&mut self, place: usize) {
        self.0
            .retain(|(_, deed)| !matches!(deed, Deed::GuestGoesOn(at) if *at == place));
    }

    /// Whether a stop of the manager is under way or to come.
    pub(crate) fn stops_manager(&self) -> bool {
        let stops = |deed: &Deed| matches!(deed, Deed::ManagerGoesOn(_) | Deed::ManagerStops(_));
        self.0.iter().any(|(_, deed)| stops(deed))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
