//! The connections that are served at a time, and who makes room for one more.
//!
//! A process that opens connections without end, or sends no request on them, costs other processes nothing: when all
//! slots are taken, the process with the most of them loses its oldest.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// All slots. Clones are the same ones.
#[derive(Debug, Clone)]
pub(super) struct ClientSlots(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    limit: usize,
    next: u64,
    /// In the order in which they came.
    connections: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    number: u64,
    pid: u32,
    /// The connection ends when this is dropped.
    _end: oneshot::Sender<()>,
}

/// One connection's slot, free again when this is dropped.
#[derive(Debug)]
pub(super) struct ClientSlot {
    slots: ClientSlots,
    number: u64,
    ended: oneshot::Receiver<()>,
}

impl ClientSlots {
    /// As many as `limit`, all free.
    pub(super) fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(Taken {
            limit,
            next: 0,
            connections: Vec::with_capacity(limit),
        })))
    }

    /// A slot for a connection of the process `pid`.
    pub(super) fn take(&self, pid: u32) -> ClientSlot {
        let mut taken = self.taken();
        if taken.connections.len() >= taken.limit {
            taken.make_room();
        }
        let (end, ended) = oneshot::channel();
        let number = taken.next;
        taken.next += 1;
        taken.connections.push(Client {
            number,
            pid,
            _end: end,
        });
        ClientSlot {
            slots: self.clone(),
            number,
            ended,
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Ends the oldest connection of the process that has the most; of equals, of the one that came first.
    fn make_room(&mut self) {
        let mut counts = HashMap::<u32, usize>::new();
        for connection in &self.connections {
            *counts.entry(connection.pid).or_default() += 1;
        }
        let most = counts.values().max().copied().unwrap_or(0);
        let oldest = |connection: &Client| counts.get(&connection.pid) == Some(&most);
        if let Some(slot) = self.connections.iter().position(oldest) {
            self.connections.remove(slot);
        }
    }
}

impl ClientSlot {
    /// Returns when another connection needs the slot.
    pub(super) async fn lost(&mut self) {
        let _ = (&mut self.ended).await;
    }
}

impl Drop for ClientSlot {
    fn drop(&mut self) {
        let number = self.number;
        let mut taken = self.slots.taken();
        taken.connections.retain(|connection| connection.number != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_lost(slot: &mut ClientSlot) -> bool {
        slot.ended.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_process_with_the_most_connections_makes_room_and_no_other() {
        let slots = ClientSlots::new(4);
        let mut patient = slots.take(1);
        let mut greedy: Vec<_> = (0..3).map(|_| slots.take(2)).collect();
        let mut others = [slots.take(3), slots.take(4)];
        assert!(!is_lost(&mut patient));
        assert_eq!(
            greedy.iter_mut().map(is_lost).collect::<Vec<_>>(),
            [true, true, false]
        );
        // All have one: the first to come goes.
        let _last = slots.take(5);
        assert!(is_lost(&mut patient) && !is_lost(&mut greedy[2]));
        assert!(!others.iter_mut().any(is_lost));
    }

    #[test]
    fn a_place_that_was_given_back_is_free() {
        let slots = ClientSlots::new(2);
        let mut kept = slots.take(1);
        (0..9).for_each(|_| drop(slots.take(1)));
        assert!(!is_lost(&mut kept));
        assert_eq!(slots.taken().connections.len(), 1);
    }
}
