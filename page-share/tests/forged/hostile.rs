//! What hostile processes say, on connections of their own and on such as they were left.

use page_share::{Gfn, PoolGeneration, Sketch, Slot};

use super::contents::{COMMON, Content};
use super::guest::PAGES;
use super::step::Count;
use super::wire::{Connection, Request};
use super::world::{GUESTS, POOL, World, named};

impl World {
    /// A slot near those that are in use: publishers' windows are 512 slots apart.
    pub(super) fn some_slot(&self, b: u32) -> Slot {
        Slot::new(b % 5 * 512 + b / 5 % (POOL / 2))
    }

    /// Whatever a hostile process might say.
    pub(super) fn forged(&mut self, b: u32) -> Request {
        let slots: Vec<Slot> = (0..b / 16 % 4)
            .map(|at| self.some_slot(b.rotate_left(at * 7)))
            .collect();
        let about: Vec<(u32, Content)> = (0..4)
            .map(|at| {
                (
                    b.rotate_left(at * 5) % (PAGES + u32::from(b.is_multiple_of(64))),
                    self.some_content(b.rotate_left(at * 9)),
                )
            })
            .collect();
        let mut reports = named(&mut self.contents, &about);
        // Sketches like those of pages that others have, in all but a few bits.
        if b.is_multiple_of(3) {
            for report in &mut reports {
                report.sketch = Sketch::new(report.sketch.get() ^ u64::from(b % 0x3_ffff + 1));
            }
        }
        let generation = match b % 32 {
            0 => PoolGeneration::new(7),
            _ => self.generation,
        };
        match b / 4 % 8 {
            0 | 1 => Request::Report(reports),
            2 => {
                let bytes = about
                    .iter()
                    .map(|&(_, content)| 1 + (content + u32::from(b.is_multiple_of(5))) % (COMMON - 1));
                Request::Publish(reports, bytes.collect())
            }
            3 => Request::Offers,
            4 => Request::Withdraw(about.iter().map(|&(gfn, _)| Gfn::new(gfn)).collect()),
            5 => Request::Release(generation, slots),
            6 => Request::Claim(generation, slots),
            _ => Request::Restate(slots),
        }
    }

    /// A content of some guest, one of its own perhaps.
    fn some_content(&self, b: u32) -> Content {
        let guest = &self.guests[b as usize % GUESTS];
        let gfn = b / 4 % PAGES;
        let content = guest.memory[gfn as usize];
        // What only one page has is not known to others; they know what it is called in most bits at the most.
        match content >= COMMON && !b.is_multiple_of(3) {
            true => 1,
            false => content,
        }
    }

    /// Whether what is sent on this connection by others than its process harms that process alone, or nothing at all.
    fn is_open_to_forgery(&self, connection: &Connection) -> bool {
        let mut living = self.guests.iter().filter(|guest| !guest.hostile);
        if !living.any(|guest| guest.life == connection.life) {
            return true;
        }
        let current = self.current.get(&connection.life).map(|(_, number)| *number);
        connection.attachment.is_some() && (connection.closed || current != Some(connection.number))
    }

    pub(super) fn forge(&mut self, a: u32, b: u32) {
        let request = self.forged(b);
        if let Some(place) = self.forgeable(a) {
            self.connections[place].requests.push_back(request);
            self.connections[place].forged = true;
            self.count(Count::Forged);
        }
    }

    /// What was said on a connection once is said again.
    pub(super) fn replay(&mut self, a: u32, b: u32) {
        let Some(place) = self.forgeable(a) else { return };
        let connection = &mut self.connections[place];
        if !connection.past.is_empty() {
            let again = connection.past[b as usize % connection.past.len()].clone();
            connection.requests.push_back(again);
            connection.forged = true;
            self.count(Count::Replayed);
        }
    }

    fn forgeable(&self, a: u32) -> Option<usize> {
        let open = |&place: &usize| self.is_open_to_forgery(&self.connections[place]);
        let places: Vec<usize> = (0..self.connections.len()).filter(open).collect();
        places.get(a as usize % places.len().max(1)).copied()
    }
}
