//! From a guest's hello to its welcome, and what it is told of its limits after that.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use allocator::GuestId;
use log::Level;
use page_share::GuestProcess;

use super::host::{Host, with_sources};
use super::outgoing::push;
use super::spare;
use levy_protocol::link::{FromManager, Hello, VERSION, Welcome};

/// A guest that is admitted and does not know it yet.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) id: GuestId,
    welcome: Welcome,
    /// What it believes about itself.
    hello: Hello,
}

impl Host {
    /// Admits the guest that introduces itself on `stream`.
    pub(super) fn admit(&self, hello: &Hello, stream: &UnixStream) -> Result<Admission, String> {
        let process = GuestProcess::of_peer(stream).map_err(|e| {
            format!(
                "the manager cannot watch the guest's process: {}",
                spare::reason(&e)
            )
        })?;
        let pid = process.pid();
        // A guest that restarts comes back under its name at once, in another process.
        self.remove_the_dead();
        let mut registry = self.registry();
        // Its connection before this one may be closed, and that not be seen yet.
        let left = registry.find(&hello.name).filter(|id| self.links().is_left(*id));
        if let Some(process) = left.and_then(|id| registry.process_mut(id)) {
            process.connected = false;
        }
        let id = registry
            .admit(hello, process)
            .map_err(|e| registry.named_with(&hello.name, &with_sources(&e)))?;
        let version = hello.range().common().map_err(|e| e.to_string())?;
        let rebalance = registry.policy().settings().rebalance;
        drop(registry);
        self.enter_cgroup(id, pid);
        let welcome = Welcome {
            version,
            newest: VERSION.min(hello.version),
            rebalance_seconds: rebalance.as_secs() as u32,
        };
        Ok(Admission {
            id,
            welcome,
            hello: hello.clone(),
        })
    }

    /// Tells a guest that it is admitted, and its limits where it believes in others: they may have been changed since
    /// it was admitted. A process that cannot be told stays admitted: it lives.
    pub(super) fn welcome(&self, stream: &Arc<UnixStream>, admission: Admission) -> io::Result<()> {
        let Admission { id, welcome, hello } = admission;
        // A change that is made from here on is told after this, on the link that is taken here.
        let telling = self.telling();
        push(stream, &FromManager::Welcome(welcome))?;
        let limits = {
            let mut registry = self.registry();
            self.links().take(id, stream);
            if let Some(process) = registry.process_mut(id) {
                process.connected = true;
            }
            registry.limits(id)
        };
        if let Some(limits) = limits.filter(|limits| !limits.are_of(&hello)) {
            push(stream, &FromManager::Limits(limits))?;
        }
        drop(telling);
        self.say(Level::Info, format_args!("{:?} is here", hello.name));
        // Without a limit it grows freely.
        self.round_trigger().fire();
        Ok(())
    }

    /// Tells guests the limits that they have now: their processes remember them, so that another manager hears of them.
    pub(super) fn tell_limits(&self, guests: impl IntoIterator<Item = GuestId>) {
        let _telling = self.telling();
        for id in guests {
            // Not under the registry's lock, which a guest that is cut off on this occasion needs.
            let limits = self.registry().limits(id);
            if let Some(limits) = limits {
                self.tell(id, &FromManager::Limits(limits));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use allocator::{Pages, Shares};

    use super::*;
    use crate::host::Sockets;
    use crate::policy::Settings;
    use levy_protocol::link::{Line, Lines};

    fn hello() -> Hello {
        Hello::new("g", 64 << 20).with_min(16 << 20)
    }

    fn host(dir: &std::path::Path) -> Host {
        let settings = Settings::new(Pages::from_mib(256));
        Host::open(Sockets::in_dir(dir), settings, Pages::from_mib(4096)).unwrap()
    }

    /// The shares that a guest is told, one message after the other.
    fn told(stream: &UnixStream) -> Vec<Option<u32>> {
        let mut lines = Lines::default();
        stream.set_nonblocking(true).unwrap();
        let message = || match lines.next::<FromManager>(&mut &*stream) {
            Ok(Line::Message(FromManager::Welcome(_))) => Some(None),
            Ok(Line::Message(FromManager::Limits(limits))) => Some(Some(limits.shares)),
            _ => None,
        };
        std::iter::from_fn(message).collect()
    }

    fn change(host: &Host, id: GuestId, shares: u32) {
        let mut registry = host.registry();
        let mut limits = registry.member(id).unwrap().limits;
        limits.shares = Shares::new(shares);
        registry.set_limits(id, limits).unwrap();
    }

    #[test]
    fn limits_that_change_between_admission_and_welcome_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let admission = host.admit(&hello(), &ours).unwrap();
        let id = admission.id;
        change(&host, id, 1234);
        host.tell_limits([id]);
        host.welcome(&Arc::new(ours), admission).unwrap();
        assert_eq!(told(&theirs), [None, Some(1234)]);
        host.close();
    }

    #[test]
    fn what_is_told_last_is_what_holds() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let admission = host.admit(&hello(), &ours).unwrap();
        let id = admission.id;
        host.welcome(&Arc::new(ours), admission).unwrap();
        // Two clients change them; the first is slow to tell.
        change(&host, id, 1100);
        change(&host, id, 1200);
        host.tell_limits([id]);
        host.tell_limits([id]);
        assert_eq!(told(&theirs), [None, Some(1200), Some(1200)]);
        host.close();
    }
}
