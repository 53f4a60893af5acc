//! What a guest's process says to its manager, which is never waited for.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use levy_protocol::link::{FromVmm, Lines};
use rustix::net::SendFlags;

use super::lock;

/// The way to the manager, while there is one.
#[derive(Debug, Default)]
pub(super) struct Outgoing(Mutex<Option<UnixStream>>);

impl Outgoing {
    /// The manager listens on `stream` from now on.
    pub(super) fn connect(&self, stream: UnixStream) {
        *lock(&self.0) = Some(stream);
    }

    /// The manager is away.
    pub(super) fn disconnect(&self) {
        *lock(&self.0) = None;
    }

    pub(super) fn is_connected(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Tells the manager something.
    ///
    /// # Errors
    /// `WouldBlock` when it has not read for some time, so that this is lost on it; every other one when it is away.
    pub(super) fn send(&self, message: &FromVmm) -> io::Result<()> {
        let mut connection = lock(&self.0);
        let Some(stream) = &*connection else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let line = Lines::encode(message)?;
        let sent = rustix::net::send(stream, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        if sent < line.len() {
            // Half a line makes garbage of the next one.
            *connection = None;
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use levy_protocol::link::{LimitStatus, Line};

    use super::*;

    #[test]
    fn a_manager_that_reads_nothing_keeps_nothing_waiting() {
        let outgoing = Outgoing::default();
        let (here, manager) = UnixStream::pair().unwrap();
        let status = FromVmm::LimitStatus(LimitStatus::default());
        let send = || outgoing.send(&status).map_err(|error| error.kind());
        assert_eq!(send(), Err(io::ErrorKind::NotConnected));
        outgoing.connect(here);
        // Far more than any socket holds: were this to wait, it would wait for ever.
        let last = (0..1_000_000).map(|_| send()).find(Result::is_err);
        assert_eq!(last, Some(Err(io::ErrorKind::WouldBlock)));
        // What it was told is whole lines, and it can be told more once it reads.
        let (mut lines, mut read) = (Lines::default(), 0);
        manager.set_nonblocking(true).unwrap();
        while let Ok(Line::Message(message)) = lines.next::<FromVmm>(&mut &manager) {
            assert!(matches!(message, FromVmm::LimitStatus(_)));
            read += 1;
        }
        assert!(read > 10, "{read} lines");
        assert_eq!(send(), Ok(()));
        drop(manager);
        assert!(send().is_err());
        outgoing.disconnect();
        assert!(!outgoing.is_connected());
        assert_eq!(send(), Err(io::ErrorKind::NotConnected));
    }
}
