//! Machine settings that the bench changes, and the parent process that puts them back.
//!
//! The measuring happens in a child. Whatever ends it (an abort, a fault, a signal, the out-of-memory killer), the
//! parent, which holds nothing but the old settings, writes them back.

use std::fs::{self, File, TryLockError};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Where KSM keeps its settings.
pub(crate) const KSM: &str = "/sys/kernel/mm/ksm";
/// How many mappings a process may have.
pub(crate) const MAX_MAP_COUNT: &str = "/proc/sys/vm/max_map_count";

/// KSM's settings that the bench changes; `run` is restored last.
const KSM_SETTINGS: [&str; 6] = [
    "advisor_mode",
    "smart_scan",
    "use_zero_pages",
    "sleep_millisecs",
    "pages_to_scan",
    "run",
];

/// Marks the child.
const CHILD: &str = "LEVY_ENGINE_BENCH_CHILD";

/// Whether this process is the one that measures.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Called first in the child: it does not outlive its parent.
pub(crate) fn follow_parent() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot tie the measuring process to its parent")
}

/// Runs this program again as the child that measures, and restores all settings when it has ended.
pub(crate) fn run_child() -> Result<()> {
    let _lock = lock()?;
    let saved = Saved::read();
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot watch for signals")?;
    let mut child = Command::new(std::env::current_exe().context("cannot name this program")?)
        .args(std::env::args_os().skip(1))
        .env(CHILD, "1")
        .spawn()
        .context("cannot start the measuring process")?;
    let pid = Pid::from_child(&child);
    let handle = signals.handle();
    let watcher = std::thread::spawn(move || {
        for _ in signals.forever() {
            // It may have ended already, and then there is nothing to end.
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    let status = child.wait().context("cannot wait for the measuring process");
    saved.restore()?;
    handle.close();
    // The watcher only forwards signals; how it ended changes nothing.
    let _ = watcher.join();
    ended(status?)
}

/// Writes a setting of the machine.
pub(crate) fn set(path: impl AsRef<Path>, value: &str) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
}

/// Reads a setting or counter of the machine that is one number.
pub(crate) fn number(path: impl AsRef<Path>) -> Result<u64> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = text.trim();
    text.parse()
        .with_context(|| format!("{} holds {text:?}, not a number", path.display()))
}

fn ended(status: ExitStatus) -> Result<()> {
    match (status.success(), status.signal()) {
        (true, _) => Ok(()),
        (false, Some(signal)) => {
            bail!("the measuring process was ended by signal {signal}; settings are restored")
        }
        (false, None) => std::process::exit(status.code().unwrap_or(1)),
    }
}

/// Only one bench at a time may change the machine's settings, or the second would "restore" the first one's.
fn lock() -> Result<File> {
    let path = std::env::temp_dir().join("levy-bench-engine.lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another engine bench is running (it holds {})", path.display())
        }
        Err(TryLockError::Error(error)) => Err(error).context("cannot take the bench's lock"),
    }
}

/// Settings as they were.
struct Saved(Vec<(PathBuf, String)>);

impl Saved {
    fn read() -> Self {
        let ksm = KSM_SETTINGS.iter().map(|name| Path::new(KSM).join(name));
        let paths = std::iter::once(PathBuf::from(MAX_MAP_COUNT)).chain(ksm);
        // What this kernel does not have cannot be changed either.
        Self(
            paths
                .filter_map(|path| Some((path.clone(), current(&fs::read_to_string(path).ok()?))))
                .collect(),
        )
    }

    /// Writes everything back that differs; goes on after a failure and reports the last one.
    fn restore(&self) -> Result<()> {
        let mut result = Ok(());
        for (path, value) in &self.0 {
            let differs = fs::read_to_string(path).map_or(true, |now| current(&now) != *value);
            if differs && let Err(error) = set(path, value) {
                eprintln!("engine: not restored: {error:#}");
                result = Err(error);
            }
        }
        result
    }
}

/// The value of a setting: sysfs shows a choice as `[chosen] other`.
fn current(text: &str) -> String {
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or(text.trim(), |(chosen, _)| chosen).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_and_numbers_are_read_as_they_are_written() {
        assert_eq!(current("[none] scan-time\n"), "none");
        assert_eq!(current("none [scan-time]\n"), "scan-time");
        assert_eq!(current("65530\n"), "65530");
    }
}
