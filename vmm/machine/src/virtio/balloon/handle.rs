//! The way to a balloon for those who must not wait for its guest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::pilot::AT_ONCE;
use super::timer::Timer;
use super::{Balloon, Change, ChangeError, Picture};
use crate::lock::{lock, lock_within};
use crate::virtio::Figures;

/// How long a change by the owner waits for the device's lock, which the guest may keep busy.
const PATIENCE: Duration = Duration::from_secs(1);

/// A balloon's figures and wishes, without its device's lock.
#[derive(Clone)]
pub struct BalloonHandle {
    device: Arc<Mutex<Balloon>>,
    shown: Figures<Picture>,
    manager: Arc<AtomicU64>,
    step: Arc<Timer>,
}

impl BalloonHandle {
    /// The way to `device`, which is not at work yet.
    pub fn to(device: &Arc<Mutex<Balloon>>) -> Self {
        let balloon = lock(device);
        let (manager, step) = balloon.pilot.manager();
        Self {
            device: Arc::clone(device),
            shown: balloon.shown.clone(),
            manager,
            step,
        }
    }

    /// The balloon as it was at the end of the device's last turn, and what is wished of it now.
    pub fn picture(&self) -> Picture {
        let shown = self.shown.get();
        Picture {
            goal: shown.owner.max(self.manager.load(Ordering::SeqCst)),
            ..shown
        }
    }

    /// The manager of the host's memory wants the guest to give up `pages` pages of 4 KiB in all.
    pub fn order(&self, pages: u64) {
        let before = self.manager.swap(pages, Ordering::SeqCst);
        // A balloon that moves is looked at often enough; steps out of turn would only spoil its rate.
        if before != pages && !self.picture().is_busy() {
            self.step.once(AT_ONCE);
        }
    }

    /// Changes what its owner can change while the guest runs. All of it, or nothing. Who changes nothing only asks.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn change(&self, change: Change) -> Result<Picture, ChangeError> {
        if change == Change::default() {
            return Ok(self.picture());
        }
        let mut balloon = lock_within(&self.device, PATIENCE).ok_or(ChangeError::Busy)?;
        balloon.change(change)?;
        Ok(balloon.picture())
    }
}
