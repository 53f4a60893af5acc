//! How long a process wanted a CPU and got none: on a busy machine that is not its fault.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// The wait of a process's hungriest thread, added up from look to look.
#[derive(Debug, Default)]
pub(crate) struct Hunger {
    threads: BTreeMap<String, Thread>,
    total: Duration,
}

/// What is known of a thread.
#[derive(Debug)]
struct Thread {
    seen: Account,
    /// Since when it has been seen to want a CPU, and to get none.
    wants_since: Option<Instant>,
    /// What was added up of its waits.
    counted: Duration,
}

/// The kernel's account of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    ran: Duration,
    /// Waits that have ended: the one under way is not in it.
    waited: Duration,
}

impl Hunger {
    /// Looks at process `pid`; how long it has waited since the first look.
    pub(crate) fn look(&mut self, pid: u32) -> Duration {
        let mut most = Duration::ZERO;
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let name = task.file_name().to_string_lossy().into_owned();
            if let Some(account) = Account::of(&task.path()) {
                most = most.max(self.wait_of(name, account, wants_a_cpu(&task.path()), Instant::now()));
            }
        }
        self.total += most;
        self.total
    }

    pub(crate) fn total(&self) -> Duration {
        self.total
    }

    /// How much longer a thread has waited than at the last look.
    fn wait_of(&mut self, name: String, account: Account, is_runnable: bool, now: Instant) -> Duration {
        // A thread that is new has waited since it began.
        let thread = self.threads.entry(name).or_insert(Thread {
            seen: account,
            wants_since: None,
            counted: account.waited,
        });
        if thread.seen != account || !is_runnable {
            (thread.seen, thread.wants_since) = (account, None);
        }
        let under_way = match is_runnable {
            true => now - *thread.wants_since.get_or_insert(now),
            false => Duration::ZERO,
        };
        // Once it has ended, it is in the account.
        let waited = account.waited + under_way;
        let more = waited.saturating_sub(thread.counted);
        thread.counted = thread.counted.max(waited);
        more
    }
}

impl Account {
    fn of(task: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
        let mut numbers = text.split_whitespace().map_while(|number| number.parse().ok());
        Some(Self {
            ran: Duration::from_nanos(numbers.next()?),
            waited: Duration::from_nanos(numbers.next()?),
        })
    }
}

/// Whether a thread runs or would, had it a CPU.
fn wants_a_cpu(task: &Path) -> bool {
    let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('R'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(ran: u64, waited: u64) -> Account {
        Account {
            ran: Duration::from_secs(ran),
            waited: Duration::from_secs(waited),
        }
    }

    #[test]
    fn a_wait_under_way_counts_once() {
        let (mut hunger, start) = (Hunger::default(), Instant::now());
        let mut at = |second, account, runnable| {
            let now = start + Duration::from_secs(second);
            hunger.wait_of("1".into(), account, runnable, now).as_secs()
        };
        assert_eq!(at(0, account(1, 5), true), 0);
        assert_eq!(at(4, account(1, 5), true), 4, "it has wanted a CPU all the time");
        assert_eq!(
            at(7, account(2, 10), true),
            1,
            "four of its five seconds were counted"
        );
        assert_eq!(at(9, account(4, 10), true), 0, "it ran");
        assert_eq!(at(12, account(4, 10), false), 0, "it sleeps");
        assert_eq!(at(13, account(4, 10), false), 0);
        assert_eq!(at(14, account(4, 10), true), 0, "since when is not known");
    }
}
