//! Ctrl-C and its relatives, taken by a thread instead of a handler.

use std::{io, thread};

use nix::sys::signal::{SigSet, Signal};

use crate::confine::{self, Role};

/// The signals by which a host asks a process to end.
const END: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The end signals, blocked in all threads.
#[derive(Debug)]
pub struct Signals(SigSet);

/// Blocks the end signals. Call before any other thread is started: threads inherit this.
///
/// # Errors
/// When the host refuses, which it does not.
pub fn block_end_signals() -> io::Result<Signals> {
    let set: SigSet = END.into_iter().collect();
    set.thread_block()?;
    Ok(Signals(set))
}

impl Signals {
    /// Calls `each` with the name of every end signal, on a thread of its own, for the rest of the process.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn watch(self, mut each: impl FnMut(&'static str) + Send + 'static) -> io::Result<()> {
        let body = move || {
            confine::enter(Role::Stream);
            while let Ok(signal) = self.0.wait() {
                each(signal.as_str());
            }
        };
        thread::Builder::new()
            .name("signals".into())
            .stack_size(128 << 10)
            .spawn(body)
            .map(|_| ())
            .map_err(levy_protocol::not_started)
    }
}

/// Holds SIGXFSZ back in this thread and those it starts: a file that may grow no further (RLIMIT_FSIZE, setrlimit(2)) is
/// an error of the write, as a full disk is, and ends no process.
///
/// # Errors
/// When the system refuses.
pub fn outlive_file_limits() -> io::Result<()> {
    SigSet::from_iter([Signal::SIGXFSZ]).thread_block()?;
    Ok(())
}
