//! Waiting for several file descriptors at once.
#![allow(unsafe_code)]
// UNSAFETY: poll(2) on raw descriptors. A device names descriptors that it owns behind its lock, which the waiting
// thread must not hold while it waits, so they cannot be borrowed.

use std::io;

use super::device::Interest;

/// Waits until one of `interests` is ready and returns the tokens of those that are.
///
/// # Errors
/// What poll(2) says, except EINTR, which gives no tokens.
pub(super) fn wait(interests: &[Interest]) -> io::Result<Vec<usize>> {
    let mut fds: Vec<libc::pollfd> = interests
        .iter()
        .map(|i| libc::pollfd {
            fd: i.fd,
            events: i.events,
            revents: 0,
        })
        .collect();
    // SAFETY: `fds` is an array of its own length; poll writes `revents` only. A stale descriptor is reported in
    // `revents`, not undefined behaviour.
    let n = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
    if n < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted {
            Ok(Vec::new())
        } else {
            Err(error)
        };
    }
    let ready = interests.iter().zip(&fds).filter(|(_, fd)| fd.revents != 0);
    Ok(ready.map(|(interest, _)| interest.token).collect())
}
