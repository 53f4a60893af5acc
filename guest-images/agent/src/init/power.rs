//! Switching the guest off, restarting, halting and crashing it.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use levy_agent::Report;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::{Pid, sync};

use super::channel::Channel;

/// How long processes may take to end after SIGTERM.
const GRACE: Duration = Duration::from_millis(700);

/// How the guest ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// Switched off.
    Poweroff,
    /// Restarted.
    Reboot,
    /// Stopped without switching off.
    Halt,
}

/// Ends everything in order: processes, write-back, read-only root, power.
pub(crate) fn end(how: End) -> ! {
    // -1 is every process but this one.
    let everybody = Pid::from_raw(-1);
    if kill(everybody, Signal::SIGTERM).is_ok() {
        thread::sleep(GRACE);
        let _ = kill(everybody, Signal::SIGKILL);
    }
    sync();
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let _ = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>);
    let mode = match how {
        End::Poweroff => RebootMode::RB_POWER_OFF,
        End::Reboot => RebootMode::RB_AUTOBOOT,
        End::Halt => RebootMode::RB_HALT_SYSTEM,
    };
    let _ = reboot(mode);
    // Not reached; if the kernel refuses, the host's deadline has to help.
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// Crashes the kernel, for tests of how the host tells it from a reboot.
pub(crate) fn crash() -> Result<(), String> {
    // Sysrq may be restricted by default.
    let _ = fs::write("/proc/sys/kernel/sysrq", "1");
    fs::write("/proc/sysrq-trigger", "c").map_err(|error| format!("cannot crash the kernel: {error}"))
}

/// From now on SIGTERM and SIGPWR switch off, and SIGINT (Ctrl-Alt-Del) restarts.
pub(crate) fn obey_signals(channel: &Arc<Channel>) {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGPWR);
    // Threads started from here on inherit the mask, so this comes before all others.
    let blocked = signals.thread_block().and_then(|()| set_cad_enabled(false));
    if let Err(error) = blocked {
        channel.report(Report::Error {
            message: format!("cannot take signals: {error}"),
        });
        return;
    }
    thread::spawn(move || {
        match signals.wait() {
            Ok(Signal::SIGINT) => end(End::Reboot),
            _ => end(End::Poweroff),
        };
    });
}
