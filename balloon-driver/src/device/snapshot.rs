//! The device at rest, and its way back to work.

use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::GuestAddressSpace;

use super::state::{BalloonState, BrokenState};
use super::{Balloon, Options, Progress};
use crate::features::QueueKind;
use crate::interrupt::Interrupt;
use crate::release::Release;

impl<M: GuestAddressSpace, R: Release> Balloon<M, R> {
    /// Everything a device needs to go on elsewhere; between two calls only, while no event is being handled.
    ///
    /// Left out are what the host observes and asks for again: counters, statistics, when the guest was last heard.
    pub fn save(&self) -> BalloonState {
        BalloonState::of(self)
    }

    /// A device that goes on where another one was saved. Its queues start with [`resume`](Self::resume).
    ///
    /// # Errors
    /// When the state contradicts itself or the memory: it may come from anywhere.
    pub fn restore(options: Options, port: R, state: &BalloonState) -> Result<Self, BrokenState> {
        let mut balloon = Self::new(options, port);
        state.restore_into(&mut balloon)?;
        Ok(balloon)
    }

    /// Starts the queues of a saved device, where it had a driver, and serves what is on them: notifications may
    /// have been lost with the old process. After [`Progress::More`] handle an event of every queue.
    ///
    /// # Errors
    /// As [`activate`](Self::activate), and when the queues contradict themselves.
    pub fn resume(
        &mut self,
        state: &BalloonState,
        memory: M,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Progress, BrokenState> {
        let Some(driver) = &state.driver else {
            return Ok(Progress::Done);
        };
        driver.check_heads()?;
        let queues: Result<Vec<Queue>, _> = driver
            .queues
            .iter()
            .map(|queue| Queue::try_from(*queue))
            .collect();
        let queues = queues.map_err(BrokenState::Queue)?;
        self.set_up(driver.features, memory, queues, interrupt)
            .map_err(BrokenState::Activate)?;
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        for (kind, ring) in active.rings.iter_mut().flatten() {
            if *kind == QueueKind::Statistics {
                ring.park(driver.parked_statistics).map_err(BrokenState::Parked)?;
            }
        }
        active.broken = driver.broken;
        if driver.broken {
            // Its driver was told that the device needs a reset, and that is what it waits for.
            return Ok(Progress::Done);
        }
        self.serve_waiting().map_err(BrokenState::Activate)
    }
}
