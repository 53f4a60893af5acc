//! What goes out to guests' processes, without waiting for any of them.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::SendFlags;

use levy_protocol::link::{FromManager, Lines};

/// Sends `message` without waiting. What does not fit goes nowhere: half a line would be garbage.
pub(super) fn push(stream: &UnixStream, message: &FromManager) -> io::Result<()> {
    let line = Lines::encode(message)?;
    let sent = rustix::net::send(stream, &line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    match sent == line.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WouldBlock.into()),
    }
}
