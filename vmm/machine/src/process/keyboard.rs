//! What a person types, on its way to a guest's serial console.

use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use crate::confine::{self, Role};

/// How long to wait when the guest's 64-byte buffer is full.
const PAUSE: Duration = Duration::from_millis(5);

/// Passes standard input on to `take`, which says how many bytes it took, on a thread of its own until the input ends.
///
/// # Errors
/// When the thread cannot be started.
pub fn forward_stdin(mut take: impl FnMut(&[u8]) -> usize + Send + 'static) -> io::Result<()> {
    let body = move || {
        // A process in the background that reads its terminal would be stopped, and its guest with it; with this
        // blocked the read fails instead.
        let _ = SigSet::from_iter([Signal::SIGTTIN]).thread_block();
        confine::enter(Role::Stream);
        let mut bytes = [0; 256];
        while let Ok(len @ 1..) = io::stdin().read(&mut bytes) {
            let mut rest = &bytes[..len];
            while !rest.is_empty() {
                let taken = take(rest);
                rest = &rest[taken..];
                if taken == 0 {
                    thread::sleep(PAUSE);
                }
            }
        }
    };
    thread::Builder::new()
        .name("keyboard".into())
        .stack_size(128 << 10)
        .spawn(body)
        .map(|_| ())
        .map_err(levy_protocol::not_started)
}
