//! What a manager's orders ask of the guest besides its memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use crate::event::Event;
use crate::virtio::balloon::BalloonHandle;
use levy_member::Duties;
use levy_protocol::control::Request;
use levy_protocol::link::BalloonReport;

/// A guest without an agent counts as up after this time.
const BOOT_TIME: Duration = Duration::from_secs(60);

/// How long a guest that is told to stop may take to switch itself off.
const GRACE_MS: u64 = 10_000;

/// One guest's duties.
pub(super) struct GuestDuties {
    pub(super) balloon: Option<BalloonHandle>,
    pub(super) up: Arc<AtomicBool>,
    pub(super) paused: Arc<AtomicBool>,
    pub(super) began: Instant,
    pub(super) events: Sender<Event>,
}

impl GuestDuties {
    fn ask(&self, request: Request) {
        // No thread waits for the answer, and a guest that has ended cannot be asked any more.
        let (answer, _) = channel();
        let _ = self.events.send(Event::Control(request, answer));
    }
}

impl Duties for GuestDuties {
    fn balloon(&mut self, pages: u64) {
        if let Some(balloon) = &self.balloon {
            balloon.order(pages);
        }
    }

    fn balloon_report(&self) -> Option<BalloonReport> {
        let balloon = self.balloon.as_ref()?;
        Some(balloon.picture().report())
    }

    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    fn is_up(&self) -> bool {
        self.up.load(Ordering::SeqCst) || self.began.elapsed() > BOOT_TIME
    }

    fn stop(&mut self) {
        self.ask(Request::Stop { grace_ms: GRACE_MS });
    }

    fn stop_within(&mut self, grace: Duration) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.ask(Request::Stop { grace_ms });
    }

    fn pause(&mut self, paused: bool) {
        self.ask(if paused { Request::Pause } else { Request::Resume });
    }
}
