//! The socket for shared pages: one thread for each sharing guest, which answers it within its part of a CPU.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use allocator::GuestId;
use page_share::{GuestProcess, LocalManager, Peer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::host::Host;
use super::manager::{Event, with_sources};
use super::open_sockets::OpenSockets;

/// Delay after rejecting a connection, so that a reconnect loop stays cheap.
const AFTER_REJECTION: Duration = Duration::from_millis(1);

/// Delay where the system has no descriptor or no thread for one more connection.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Time between two looks whether the socket was opened again.
const LOOK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Stack of a thread that serves a guest.
const STACK: usize = 512 << 10;

impl Host {
    /// Serves the processes that connect to `listener`, or to what takes its place, until the manager closes.
    pub(super) fn receive_pages(&self, mut listener: UnixListener) {
        loop {
            let knocked = wait_for_knock(&listener);
            if self.is_closing() {
                return;
            }
            let fresh = self.open_sockets().as_mut().and_then(OpenSockets::fresh_pages);
            if let Some(fresh) = fresh {
                listener = fresh;
                continue;
            }
            match knocked.and_then(|knocked| knocked.then(|| listener.accept()).transpose()) {
                Ok(None) => {}
                Ok(Some((stream, _))) => self.attend_pages(stream),
                // The next guest may have more luck once others are gone.
                Err(error) => {
                    self.starved("a guest's process could not be let in for its pages", &error);
                    std::thread::sleep(SHORTAGE);
                }
            }
        }
    }

    fn attend_pages(&self, stream: UnixStream) {
        let process = match GuestProcess::of_peer(&stream) {
            Ok(process) => process,
            // A process that is gone already has nothing to say.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return,
            Err(error) => {
                self.starved("a guest's process cannot be watched", &error);
                return std::thread::sleep(SHORTAGE);
            }
        };
        let pid = process.pid();
        if !self.state().manager.lets_connect(Instant::now(), pid) {
            return std::thread::sleep(AFTER_REJECTION);
        }
        let host = self.clone();
        let body = move || {
            host.serve_pages(stream, &process);
            host.state().manager.disconnected(pid);
        };
        let thread = std::thread::Builder::new().name("pages".into()).stack_size(STACK);
        // Dropped with what it was to do, the connection ends, and the guest's process comes again.
        if let Err(error) = thread.spawn(body).map_err(levy_protocol::not_started) {
            self.state().manager.disconnected(pid);
            self.starved("no thread for a guest's pages", &error);
            std::thread::sleep(SHORTAGE);
        }
    }

    /// One guest's page connection: its process must have been admitted before.
    fn serve_pages(&self, stream: UnixStream, process: &GuestProcess) {
        let ended = |guest, (reason, offence)| {
            self.handle(Event::PagesEnded {
                guest,
                reason,
                offence,
            });
        };
        let kept = match stream.try_clone() {
            Ok(kept) => kept,
            Err(error) => return self.starved("a guest's pages cannot be served", &error),
        };
        let (guest, domain, peer) = match self.take_pages(kept, process) {
            Ok(found) => found,
            Err(reason) => return ended(None, (reason, false)),
        };
        if let Err(error) = page_share::serve(stream, &domain, peer) {
            ended(Some(guest), (with_sources(&error), error.is_offence()));
        }
    }

    /// Makes `stream` the connection for pages of the guest that `process` runs; returns that guest, its domain, and who it
    /// is there.
    fn take_pages(
        &self,
        stream: UnixStream,
        process: &GuestProcess,
    ) -> Result<(GuestId, LocalManager, Peer), String> {
        let mut state = self.state();
        let guest = state.processes.guest_of(process);
        let sharer = guest.and_then(|guest| state.manager.registry().sharer(Instant::now(), guest));
        let found = sharer.and_then(|sharer| Some((state.processes.peer(&sharer)?, sharer)));
        let (peer, sharer) = found
            .ok_or("a process that runs no sharing guest of this manager wants pages; it is turned away")?;
        let limit = state.manager.registry().first_pool_limit();
        let domain = state.processes.domain(&sharer.domain, limit).map_err(|error| {
            format!(
                "{:?} shares no pages until it connects again: the domain {} cannot be made: {error}",
                state.manager.registry().named(&sharer.guest.to_string()),
                sharer.domain
            )
        })?;
        // Before the lock is given up: whatever ends the guest's connections from here on ends this one too.
        self.links().take_pages(sharer.guest, stream);
        Ok((sharer.guest, domain, peer))
    }
}

/// Waits for a process that connects; `false` when none came for a while.
fn wait_for_knock(listener: &UnixListener) -> io::Result<bool> {
    let mut watched = [PollFd::new(listener, PollFlags::IN)];
    match poll(&mut watched, Some(&LOOK)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use allocator::Pages;
    use levy_protocol::link::Hello;

    use super::*;
    use crate::admission::identify;
    use crate::host::Sockets;
    use crate::policy::Settings;
    use crate::registry::Applicant;

    /// A guest that this process runs, and which shares pages.
    fn admit(host: &Host, stream: &UnixStream) -> GuestProcess {
        let (id, process) = identify(stream).unwrap();
        let mut state = host.state();
        assert!(state.manager.lets_connect(Instant::now(), id.pid));
        let (connection, pid) = (1, id.pid);
        state.handle(Event::Connected { connection, pid });
        state.processes.offer(id, process.clone());
        let hello = Hello::new("g", 64 << 20).with_min(16 << 20);
        let applicant = Applicant {
            hello: hello.in_domain("web"),
            process: id,
            domain: Ok(()),
            swap_device: None,
        };
        state.handle(Event::Introduced {
            connection,
            applicant: Ok(applicant),
            hung_up: false,
        });
        process
    }

    #[test]
    fn what_ends_a_guests_connections_ends_the_one_whose_thread_is_about_to_serve_it() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::new(Pages::from_mib(256));
        let host = Host::open(Sockets::in_dir(dir.path()), settings, Pages::from_mib(4096)).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let process = admit(&host, &ours);
        // What its thread serves: that the rest is dropped ends nothing.
        let _served = ours.try_clone().unwrap();
        let (guest, _, _) = host.take_pages(ours, &process).unwrap();
        // Another connection of its process breaks the protocol.
        host.handle(Event::PagesEnded {
            guest: Some(guest),
            reason: "garbage".into(),
            offence: true,
        });
        theirs.set_nonblocking(true).unwrap();
        assert_eq!(theirs.read(&mut [0]).ok(), Some(0), "it is hung up on");
        let (again, _theirs) = UnixStream::pair().unwrap();
        assert!(host.take_pages(again, &process).is_err(), "it is kept out");
        host.close();
    }
}
