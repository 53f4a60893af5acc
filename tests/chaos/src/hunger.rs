//! How long a process wanted a CPU and got none: on a busy machine that is not its fault.

use std::collections::BTreeMap;
use std::time::Duration;

/// The wait of a process's hungriest thread, added up from look to look.
#[derive(Debug, Default)]
pub(crate) struct Hunger {
    /// What each thread had waited in all at the last look, nanoseconds.
    threads: BTreeMap<String, u64>,
    total: Duration,
}

impl Hunger {
    /// Looks at process `pid`; how long it has waited since the first look.
    pub(crate) fn look(&mut self, pid: u32) -> Duration {
        let mut most = 0;
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let name = task.file_name().to_string_lossy().into_owned();
            let Some(waited) = waited(&task.path()) else {
                continue;
            };
            // A thread that is new has waited since it began.
            let before = self.threads.insert(name, waited).unwrap_or(waited);
            most = most.max(waited.saturating_sub(before));
        }
        self.total += Duration::from_nanos(most);
        self.total
    }

    pub(crate) fn total(&self) -> Duration {
        self.total
    }
}

/// Nanoseconds that a thread has waited for a CPU while it could run.
fn waited(task: &std::path::Path) -> Option<u64> {
    let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
    text.split_whitespace().nth(1)?.parse().ok()
}
