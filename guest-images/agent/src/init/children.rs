//! PID 1 inherits every orphan and must reap it, without stealing the exit status of children it waits for itself.

use std::io;
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};

/// Children that a caller of [`spawn`] waits for. Held while spawning and while reaping: a child that ends at once is
/// not taken for an orphan.
static AWAITED: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn awaited() -> std::sync::MutexGuard<'static, Vec<u32>> {
    AWAITED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Starts a child that the caller will [`wait`] for.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut awaited = awaited();
    let child = unmasked(|| command.spawn())?;
    awaited.push(child.id());
    Ok(child)
}

/// Children inherit the signal mask of the thread that starts them, and PID 1 blocks what it waits for: a server
/// that was started so would never see a SIGTERM. To PID 1 itself an unblocked signal without a handler is harmless.
fn unmasked<T>(start: impl FnOnce() -> T) -> T {
    let mask = SigSet::empty().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let started = start();
    if let Ok(mask) = mask {
        // It was the mask a moment ago, so it is a valid one.
        let _ = mask.thread_set_mask();
    }
    started
}

/// Waits for a child from [`spawn`].
pub(crate) fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let status = child.wait();
    forget(child.id());
    status
}

/// Runs a child to its end and returns what it wrote.
pub(crate) fn output(command: &mut Command) -> io::Result<Output> {
    let child = spawn(command)?;
    let pid = child.id();
    let output = child.wait_with_output();
    forget(pid);
    output
}

fn forget(pid: u32) {
    awaited().retain(|awaited| *awaited != pid);
}

/// Reaps orphans from now on, in a thread of its own.
pub(crate) fn reap_orphans() {
    thread::spawn(|| {
        loop {
            while reap_one() {}
            thread::sleep(Duration::from_millis(500));
        }
    });
}

/// Reaps the first zombie unless it is awaited; true if there may be more.
fn reap_one() -> bool {
    let awaited = awaited();
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let Some(pid) = waitid(Id::All, look).ok().and_then(|status| status.pid()) else {
        return false;
    };
    if u32::try_from(pid.as_raw()).is_ok_and(|pid| awaited.contains(&pid)) {
        return false;
    }
    waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_ok()
}
