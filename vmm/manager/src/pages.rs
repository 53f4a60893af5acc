//! The socket for shared pages: one thread for each sharing guest, which answers it within its part of a CPU.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use log::Level;
use page_share::GuestProcess;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::host::{Host, with_sources};
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
        if !self.connection_limits().enter(pid) {
            self.statistics().counters.crowded += 1;
            return std::thread::sleep(AFTER_REJECTION);
        }
        let host = self.clone();
        let body = move || {
            host.serve_pages(stream, &process);
            host.connection_limits().leave(pid);
        };
        let thread = std::thread::Builder::new().name("pages".into()).stack_size(STACK);
        // Dropped with what it was to do, the connection ends, and the guest's process comes again.
        if let Err(error) = thread.spawn(body).map_err(levy_protocol::not_started) {
            self.connection_limits().leave(pid);
            self.starved("no thread for a guest's pages", &error);
            std::thread::sleep(SHORTAGE);
        }
    }

    /// One guest's page connection: its process must have been admitted before.
    fn serve_pages(&self, stream: UnixStream, process: &GuestProcess) {
        let found = self.registry().peer(process);
        let (id, domain, peer) = match found {
            Ok(found) => found,
            Err(reason) => return self.say_once(Level::Warn, &reason),
        };
        let kept = match stream.try_clone() {
            Ok(kept) => kept,
            Err(error) => return self.starved("a guest's pages cannot be served", &error),
        };
        self.links().take_pages(id, kept);
        let Err(error) = page_share::serve(stream, &domain, peer) else {
            return;
        };
        let (name, reason) = (self.name(id), with_sources(&error));
        self.say_once(
            Level::Warn,
            &format!("{name:?} shares no more pages until it connects again: {reason}"),
        );
        if error.is_offence() {
            self.cut_off(id);
        }
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
