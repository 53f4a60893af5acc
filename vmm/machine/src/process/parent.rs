//! Not outliving one's launcher.

use std::io;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

/// Has the kernel end this process (SIGTERM) when its parent, which is `parent`, dies.
///
/// # Errors
/// When the parent is dead already.
pub fn die_with(parent: u32) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    // Between the parent's fork and here it may have died: then another process is the parent.
    if getppid().as_raw() as u32 != parent {
        return Err(io::Error::other("the launcher is gone"));
    }
    Ok(())
}
