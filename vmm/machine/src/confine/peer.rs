//! Which process is at the other end of a socket, as far as a confined thread, which may open no file, can find out.
#![allow(unsafe_code)]
// UNSAFETY: two system calls that write a structure of known size where they are told to.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};

use levy_protocol::mark::MARK;

/// Refusals that are logged: a neighbour that comes again and again shall not use up what this guest may log.
const LOGGED: u32 = 8;

static REFUSED: AtomicU32 = AtomicU32::new(0);

/// Whether the process that connected `stream` may ask: any of this user but those that a guest may have taken over.
///
/// It holds against neighbours, whatever their manager: they are [marked](levy_protocol::mark). It does not hold against
/// processes that are not confined, and those of other users and of namespaces further out cannot be looked at: what
/// keeps them away are the permissions of the socket's file.
pub(crate) fn is_welcome(stream: &UnixStream) -> bool {
    let pid = pid_of(stream);
    let welcome = match pid {
        // Further out than this process's namespace.
        Some(0) => true,
        Some(pid) => !is_marked(pid),
        None => false,
    };
    if !welcome && REFUSED.fetch_add(1, Ordering::Relaxed) < LOGGED {
        let pid = pid.unwrap_or_default();
        log::warn!("process {pid} is refused: it runs a guest, which may have taken it over, or it is gone");
    }
    welcome
}

fn pid_of(stream: &UnixStream) -> Option<libc::pid_t> {
    let mut known = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of_val(&known) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: `known` has room for `len` bytes, of which the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            level,
            name,
            (&raw mut known).cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(known.pid)
}

/// Whether process `pid` is marked, or gone, so that this cannot be known any more.
fn is_marked(pid: libc::pid_t) -> bool {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: no new limit is given, and `limit` has room for the one that is.
    let result = unsafe { libc::prlimit(pid, libc::RLIMIT_MSGQUEUE, std::ptr::null(), &raw mut limit) };
    match result {
        0 => limit.rlim_max == MARK,
        _ => std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH),
    }
}
