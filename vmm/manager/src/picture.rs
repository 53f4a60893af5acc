//! A copy of the registry for those who want to see it: taken in a moment, looked at without its lock.

use std::collections::BTreeMap;

use allocator::{Fleet, Pages, Plan};
use page_share::LocalManager;

use super::groups::Groups;
use super::manager::Manager;
use super::member::Member;
use super::names::Names;
use super::policy::{Round, Settings, Spent};
use super::registry::ManagedProcess;
use super::statistics::{Rounds, SocketCounters, Times};

/// All that the API shows of guests.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The settings in force.
    pub settings: Settings,
    /// Free memory that is aimed for.
    pub goal: Pages,
    /// The last round, its orders left out.
    pub round: Option<Round>,
    /// What the budget is spent on besides guests' processes.
    pub spent: Spent,
    /// Of that, pools of managers that are gone.
    pub old_pools: Pages,
    /// All guests, in the order of admission.
    pub guests: Vec<(Member, ManagedProcess)>,
    /// The groups.
    pub groups: Groups,
    /// The sharing domains.
    pub domains: BTreeMap<String, LocalManager>,
    /// The plan in force, and the fleet as it is now where one can be planned for.
    pub plan: Plan,
    /// See `plan`.
    pub fleet: Option<Fleet>,
    /// What happened at the sockets.
    pub counters: SocketCounters,
    /// From a report's sending to its being known.
    pub(super) handling: Times,
    /// How often rounds come.
    pub(super) rounds: Rounds,
    /// Who is called how.
    pub names: Names,
}

impl Picture {
    pub(super) fn of(manager: &Manager, domains: BTreeMap<String, LocalManager>) -> Self {
        let (registry, statistics) = (manager.registry(), manager.statistics());
        let guests = registry.guests();
        let round = registry.last_round().map(|round| Round {
            orders: Default::default(),
            ..*round
        });
        Self {
            settings: *registry.policy().settings(),
            goal: registry.policy().goal(),
            round,
            spent: registry.spent(),
            old_pools: registry.old_pools(),
            guests: guests
                .map(|(member, process)| (member.clone(), process.clone()))
                .collect(),
            groups: registry.groups().clone(),
            domains,
            plan: registry.policy().plan().clone(),
            fleet: registry.fleet().ok(),
            counters: statistics.counters,
            handling: statistics.handling.clone(),
            rounds: statistics.rounds.clone(),
            names: registry.names(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use levy_protocol::link::{FromVmm, Hello, Lines};

    use super::*;
    use crate::api::view;
    use crate::host::{Host, Sockets};

    #[test]
    fn what_is_shown_is_put_into_words_while_a_round_holds_the_registry() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::new(Pages::from_mib(256));
        let host = Host::open(Sockets::in_dir(dir.path()), settings, Pages::from_mib(4096)).unwrap();
        let hello = Hello::new("web", 64 << 20).with_min(16 << 20);
        let guest = UnixStream::connect(Sockets::in_dir(dir.path()).guests).unwrap();
        Lines::send(&mut &guest, &FromVmm::Hello(hello)).unwrap();
        let admitted = || host.registry().guests().count() == 1;
        while !admitted() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let picture = host.picture();
        let round = host.registry();
        let (shown, is_shown) = channel();
        let asked = host.clone();
        std::thread::spawn(move || {
            let guests = view::guests(&picture, None);
            let _ = shown.send((guests, view::host(&asked, &picture)));
        });
        let (guests, view) = is_shown
            .recv_timeout(Duration::from_secs(60))
            .expect("it waits for no round");
        assert_eq!((guests[0].name.as_str(), view.guests), ("web", 1));
        drop(round);
        host.close();
    }
}
