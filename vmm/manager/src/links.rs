//! The connections of admitted guests, as those who have something to say to them know them.

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use allocator::GuestId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Each guest's connections.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// For reports and orders.
    guests: BTreeMap<GuestId, Arc<UnixStream>>,
    /// For shared pages.
    pages: BTreeMap<GuestId, UnixStream>,
}

impl Links {
    /// The connection on which `id` is told what to do.
    pub(super) fn of(&self, id: GuestId) -> Option<Arc<UnixStream>> {
        self.guests.get(&id).cloned()
    }

    /// `id` is told what to do on `stream` from now on.
    pub(super) fn take(&mut self, id: GuestId, stream: &Arc<UnixStream>) {
        hang_up(self.guests.insert(id, Arc::clone(stream)).as_deref());
    }

    /// One connection for each guest: who opens another has given the one before up.
    pub(super) fn take_pages(&mut self, id: GuestId, stream: UnixStream) {
        hang_up(self.pages.insert(id, stream).as_ref());
    }

    /// `stream` has ended. Whether `id` has no other connection now on which it is told what to do.
    pub(super) fn ended(&mut self, id: GuestId, stream: &Arc<UnixStream>) -> bool {
        match self.guests.get(&id) {
            Some(other) if !Arc::ptr_eq(other, stream) => false,
            _ => {
                self.guests.remove(&id);
                true
            }
        }
    }

    /// Whether the process at the other end of the connection of `id` has closed it.
    pub(super) fn is_left(&self, id: GuestId) -> bool {
        let Some(stream) = self.guests.get(&id) else {
            return true;
        };
        let mut ends = [PollFd::new(&**stream, PollFlags::RDHUP)];
        poll(&mut ends, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }

    /// Ends both connections of `id`; they are forgotten once they have ended.
    pub(super) fn cut(&self, id: GuestId) {
        hang_up(self.guests.get(&id).map(|stream| &**stream));
        hang_up(self.pages.get(&id));
    }

    /// Forgets `id`, whose process is dead. Its connections may have gone to other processes.
    pub(super) fn remove(&mut self, id: GuestId) {
        hang_up(self.guests.remove(&id).as_deref());
        hang_up(self.pages.remove(&id).as_ref());
    }

    /// Ends all connections.
    pub(super) fn close(&self) {
        self.guests.values().for_each(|stream| hang_up(Some(stream)));
        self.pages.values().for_each(|stream| hang_up(Some(stream)));
    }
}

fn hang_up(stream: Option<&UnixStream>) {
    if let Some(stream) = stream {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn both_connections_of_a_guest_that_is_forgotten_end_at_once() {
        let [guests, pages] = [(); 2].map(|()| UnixStream::pair().unwrap());
        let (ours, id) = (Arc::new(guests.0), GuestId::new(1));
        // What the threads have that serve them.
        let _served = pages.0.try_clone().unwrap();
        let mut links = Links::default();
        links.take(id, &ours);
        links.take_pages(id, pages.0);
        assert!(links.of(id).is_some() && !links.is_left(id));
        links.remove(id);
        assert!(links.of(id).is_none() && links.is_left(id));
        for mut theirs in [guests.1, pages.1] {
            theirs.set_nonblocking(true).unwrap();
            assert_eq!(theirs.read(&mut [0]).ok(), Some(0), "it is hung up on");
        }
    }
}
