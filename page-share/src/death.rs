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
pub struct GuestProcess(Arc<ProcessWatch>);

#[derive(Debug)]
struct ProcessWatch {
    pid: u32,
    pidfd: OwnedFd,
}

/// The process of one [`GuestProcess`] is dead. There is no other way to get this than [`GuestProcess::dead`].
#[derive(Debug, Clone)]
pub struct Dead(Arc<ProcessWatch>);

impl GuestProcess {
    /// Watches the process at the other end of `stream`: the one that connected, whichever process holds its descriptor now.
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

    /// Watches process `pid` if it is the one that started at `started`, by [`GuestProcess::started`]: a manager that
    /// takes over from another knows its guests' processes so. `None` where that process is gone.
    ///
    /// # Errors
    /// When the kernel has no descriptor to spare, or does not say when the process started.
    pub fn of_started(pid: u32, started: u64) -> io::Result<Option<Self>> {
        let gone = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL));
        let process = match Self::of_child(pid) {
            Err(error) if gone(&error) || error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            other => other?,
        };
        match process.started() {
            Ok(at) if at == started => Ok(Some(process)),
            Ok(_) => Ok(None),
            Err(_) if process.dead().is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// When the process started, in the kernel's clock ticks since the machine did. With its number that names one
    /// process for as long as the machine runs.
    ///
    /// # Errors
    /// When it is dead, or the kernel does not say.
    pub fn started(&self) -> io::Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The number was this process's while that was read, if it is alive still.
        if self.dead().is_some() {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        start_time(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel reports no start time"))
    }

    fn open(pid: Pid) -> io::Result<Self> {
        Ok(Self::new(pid, pidfd_open(pid, PidfdFlags::empty())?))
    }

    fn new(pid: Pid, pidfd: OwnedFd) -> Self {
        let pid = pid.as_raw_nonzero().get().cast_unsigned();
        Self(Arc::new(ProcessWatch { pid, pidfd }))
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

/// The twenty-second field of /proc/PID/stat; the second is in parentheses and may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
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
    fn a_process_that_has_the_number_of_a_dead_one_is_another() {
        let [mut dead, mut alive] = [child(), child()];
        let old = GuestProcess::of_child(dead.id()).unwrap();
        let pidfd = old.as_fd().try_clone_to_owned().unwrap();
        let process = GuestProcess::of_child(alive.id()).unwrap();
        let before = GuestProcess::new(Pid::from_child(&alive), pidfd);
        assert!(process.is_still(&before), "both live");
        dead.kill().unwrap();
        dead.wait().unwrap();
        assert!(!process.is_still(&before));
        alive.kill().unwrap();
        alive.wait().unwrap();
    }

    #[test]
    fn a_process_is_found_again_by_its_number_and_start_and_no_other_is() {
        let mut one = child();
        let watched = GuestProcess::of_child(one.id()).unwrap();
        let started = watched.started().unwrap();
        let again = GuestProcess::of_started(one.id(), started).unwrap().unwrap();
        assert!(again.is_still(&watched));
        assert!(GuestProcess::of_started(one.id(), started + 1).unwrap().is_none());
        assert!(GuestProcess::of_started(u32::MAX, started).unwrap().is_none());
        one.kill().unwrap();
        one.wait().unwrap();
        assert!(watched.started().is_err());
        assert!(GuestProcess::of_started(one.id(), started).unwrap().is_none());
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!((start_time(stat), start_time("12 (a")), (Some(4711), None));
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
