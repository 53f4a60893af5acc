//! From a guest's hello to its welcome: what is found out about the process that introduces itself.

use std::os::unix::net::UnixStream;

use allocator::GuestId;
use page_share::GuestProcess;

use super::host::Host;
use super::manager::{ConnectionId, Effect, Event};
use super::own_swap::has_folder_on;
use super::registry::{Applicant, ProcessId, is_name};
use super::spare;
use levy_protocol::link::{Hello, Sharing};

impl Host {
    /// Finds out which process introduces itself on `stream`, and returns what is to be done then.
    pub(super) fn introduce(
        &self,
        connection: ConnectionId,
        hello: Hello,
        stream: &UnixStream,
    ) -> Vec<Effect> {
        let identified = identify(stream);
        // A guest that restarts comes back under its name at once, in another process. The one before is removed after
        // this one is identified: a number that a guest still has then is that of its process.
        self.look_for_the_dead();
        let swap_device = match (&hello.swap, &identified) {
            (Some(swap), Ok((process, _))) => {
                Some(swap.device).filter(|device| has_folder_on(process.pid, *device).unwrap_or(false))
            }
            _ => None,
        };
        let domain = match &hello.sharing {
            Sharing::Domain(name) if is_name(name) => Some(name.clone()),
            _ => None,
        };
        let mut state = self.state();
        let known = state.manager.registry().find(&hello.name);
        let hung_up = known.is_some_and(|guest| self.links().is_left(guest));
        let limit = state.manager.registry().first_pool_limit();
        let applicant = identified.map(|(process, handle)| {
            state.processes.offer(process, handle);
            let made = domain.as_ref().map(|name| state.processes.domain(name, limit));
            Applicant {
                hello,
                process,
                domain: made.map_or(Ok(()), |made| made.map(drop)),
                swap_device,
            }
        });
        let effects = state.handle(Event::Introduced {
            connection,
            applicant,
            hung_up,
        });
        if let Some(name) = domain.filter(|name| !state.manager.registry().shares_in(name)) {
            state.processes.drop_domain(&name);
        }
        effects
    }

    /// Tells guests the limits that they have now: their processes remember them, so that another manager hears of them.
    pub(super) fn tell_limits(&self, guests: impl IntoIterator<Item = GuestId>) {
        let _telling = self.telling();
        self.handle(Event::LimitsChanged(guests.into_iter().collect()));
    }
}

/// The process at the other end of `stream`, and its watch.
pub(super) fn identify(stream: &UnixStream) -> Result<(ProcessId, GuestProcess), String> {
    let handle = GuestProcess::of_peer(stream).map_err(|error| {
        format!(
            "the manager cannot watch the guest's process: {}",
            spare::reason(&error)
        )
    })?;
    let started = handle.started();
    let started = started.map_err(|error| {
        format!(
            "the manager cannot see when the guest's process started: {}",
            spare::reason(&error)
        )
    })?;
    let pid = handle.pid();
    Ok((ProcessId { pid, started }, handle))
}
