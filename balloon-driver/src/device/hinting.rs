//! The host's side of free page hinting.

use vm_memory::GuestAddressSpace;

use super::{Balloon, DeviceError};
use crate::features::FREE_PAGE_HINT;
use crate::frame_set::FrameSet;
use crate::release::Release;

impl<M: GuestAddressSpace, R: Release> Balloon<M, R> {
    /// Asks the guest to list its free pages and forgets what it listed before. Nothing happens without a driver
    /// that negotiated hinting.
    ///
    /// The guest keeps the listed pages unused until [`finish_hinting`](Self::finish_hinting). No two rounds of a
    /// device have the same number, snapshots and resets between them or not.
    ///
    /// # Errors
    /// When the interrupt cannot be raised; the round has begun all the same.
    pub fn start_hinting(&mut self) -> Result<(), DeviceError> {
        if self.negotiated(FREE_PAGE_HINT) {
            self.rounds.start(FrameSet::new(&self.store.port().backed()));
        }
        self.tell_round()
    }

    /// Tells the guest to list no more pages for now. It keeps those that it listed unused, and
    /// [`hinted`](Self::hinted) still names them; what it lists from here on is ignored.
    ///
    /// # Errors
    /// When the interrupt cannot be raised; the round has stopped all the same.
    pub fn stop_hinting(&mut self) -> Result<(), DeviceError> {
        self.rounds.stop();
        self.tell_round()
    }

    /// Tells the guest that it may use the listed pages again. They are forgotten here, and what it still lists is
    /// ignored. Nothing happens where no round was started since the last reset.
    ///
    /// # Errors
    /// When the interrupt cannot be raised; the round has ended all the same.
    pub fn finish_hinting(&mut self) -> Result<(), DeviceError> {
        self.rounds.finish();
        self.tell_round()
    }

    /// The frames that the guest listed in the current round, and whether it is through; `None` when no round was
    /// started or the last one was finished. A migration may leave them out, provided that it tracked writes since
    /// before the round started.
    pub fn hinted(&self) -> Option<(&FrameSet, bool)> {
        self.rounds.held().map(|round| (&round.free, round.complete))
    }

    /// Shows the driver what the rounds say, if that is news.
    fn tell_round(&mut self) -> Result<(), DeviceError> {
        let command = self.rounds.command();
        if std::mem::replace(&mut self.config.host.hint_command, command) == command {
            return Ok(());
        }
        self.config_changed()
    }
}
