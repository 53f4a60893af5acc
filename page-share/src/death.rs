//! Proof that a guest's process is dead. Only the kernel gives it, through a pidfd.
//!
//! A guest's pages are mapped in its process, so the references to them may go only when that process can touch no
//! memory any more. No message, closed connection, failed send or time-out says so. A [`Dead`] does: the one way to
//! have it is to ask a [`GuestProcess`] whose pidfd has become readable, and a pidfd becomes readable after the last
//! thread of the process has let go of its memory.
#![allow(unsafe_code)]
// UNSAFETY: getsockopt(2) with SO_PEERPIDFD, which rustix does not offer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process that owns a guest's memory, as its manager watches it. Clones are the same watch.
///
/// Two values that were made one by one are two watches, even of one process: a guest belongs to the watch that it was
/// admitted with.
#[derive(Debug, Clone)]
pub struct GuestProcess(Arc<Watch>);

#[derive(Debug)]
struct Watch {
    pid: u32,
    pidfd: OwnedFd,
}

/// The process of one [`GuestProcess`] is dead. There is no other way to get this than [`GuestProcess::dead`].
#[derive(Debug, Clone)]
pub struct Dead(Arc<Watch>);

impl GuestProcess {
    /// Watches the process at the other end of `stream`: the one that connected, whoever holds its descriptor now.
    ///
    /// # Errors
    /// When that process is gone already, or the kernel has no descriptor to spare.
    pub fn of_peer(stream: &UnixStream) -> io::Result<Self> {
        let pid = rustix::net::sockopt::socket_peercred(stream)?.pid;
        match peer_pidfd(stream) {
            Ok(pidfd) => Ok(Self::new(pid, pidfd)),
            // Kernels before 6.5. They cannot move pages either, so that no reference depends on whether the number
            // has gone to another process meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Self::open(pid),
            Err(error) => Err(error),
        }
    }

    /// Watches process `pid`, which must be a child of this process that has not been waited for: any other number may
    /// have gone to another process.
    ///
    /// # Errors
    /// When there is no such process, or the kernel has no descriptor to spare.
    pub fn of_child(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        Self::open(pid.ok_or(io::ErrorKind::InvalidInput)?)
    }

    fn open(pid: Pid) -> io::Result<Self> {
        Ok(Self::new(pid, pidfd_open(pid, PidfdFlags::empty())?))
    }

    fn new(pid: Pid, pidfd: OwnedFd) -> Self {
        let pid = pid.as_raw_nonzero().get().cast_unsigned();
        Self(Arc::new(Watch { pid, pidfd }))
    }

    /// The process's number, which means this process only while it lives.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// The proof that the process is dead, once it is. `None` too when the kernel cannot say.
    pub fn dead(&self) -> Option<Dead> {
        let mut fds = [PollFd::new(&self.0.pidfd, PollFlags::IN)];
        let now = Timespec::default();
        let exited = poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
            && fds[0].revents().contains(PollFlags::IN);
        exited.then(|| Dead(Arc::clone(&self.0)))
    }

    /// Whether both are watches of one process that is alive.
    ///
    /// `self` must be the younger watch: its number was this process's while `before` was watched already.
    pub fn is_still(&self, before: &Self) -> bool {
        self.pid() == before.pid() && self.dead().is_none() && before.dead().is_none()
    }
}

impl GuestProcess {
    /// Whether this is the same watch, not only the same process.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl AsFd for GuestProcess {
    /// The pidfd: polls readable once the process is dead.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.pidfd.as_fd()
    }
}

impl Dead {
    /// Whether this is the death of `process`.
    pub fn is_of(&self, process: &GuestProcess) -> bool {
        Arc::ptr_eq(&self.0, &process.0)
    }

    /// The number that the process had.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }
}

/// The peer's pidfd. Unlike a number it cannot go to another process between being read and being opened.
fn peer_pidfd(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut fd: RawFd = -1;
    let mut length = size_of::<RawFd>() as libc::socklen_t;
    // SAFETY: both pointers are to locals that outlive the call, and `length` is the size of what the first points to.
    let outcome = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: on success the kernel has just installed this descriptor for the caller, who alone knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// A process that lives until it is killed.
    fn child() -> Child {
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped()).stdout(Stdio::null());
        cat.spawn().expect("cat starts")
    }

    #[test]
    fn only_a_dead_process_gives_the_proof_and_it_is_its_own() {
        let [mut one, mut other] = [child(), child()];
        let [first, second] = [&one, &other].map(|child| GuestProcess::of_child(child.id()).unwrap());
        assert!(first.dead().is_none() && second.dead().is_none());
        assert!(GuestProcess::of_child(one.id()).unwrap().is_still(&first));
        one.kill().unwrap();
        // Not waited for yet: a zombie has no memory either.
        let proof = std::iter::from_fn(|| {
            std::thread::yield_now();
            Some(first.dead())
        });
        let proof = proof.flatten().next().expect("it was killed");
        assert!(proof.is_of(&first) && !proof.is_of(&second));
        assert!(second.dead().is_none());
        assert!(!first.is_still(&first));
        one.wait().unwrap();
        assert!(first.dead().is_some(), "for ever");
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_closed_connection_is_not_a_death() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let process = GuestProcess::of_peer(&ours).unwrap();
        drop((ours, theirs));
        assert_eq!(process.pid(), std::process::id());
        assert!(process.dead().is_none());
        assert!(GuestProcess::of_child(0).is_err());
    }
}
