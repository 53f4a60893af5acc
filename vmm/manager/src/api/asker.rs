//! Which process asks, and whether it may.
//!
//! The socket is for the manager's own user, and so are the processes of guests, of which one that its guest has taken
//! over would stop its neighbours or take their memory. They are known by their numbers, which the kernel says, and by
//! their mark: guests of other managers, and of none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Extension;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::net::UnixStream;
use tokio::net::unix::UCred;

use super::failure::ApiError;
use super::routes::Served;
use crate::host::Host;
use crate::manager::Event;
use levy_protocol::mark;

/// The process at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pid: u32,
    /// It belongs to the user of this manager.
    own: bool,
    /// A request of it has come.
    asked: Arc<AtomicBool>,
}

impl Asker {
    /// Who connected `stream`. Where the kernel does not say, which it always does, it is no process at all.
    pub(super) fn of(stream: &UnixStream) -> Self {
        let known = stream.peer_cred().ok();
        let pid = known.as_ref().and_then(UCred::pid);
        Self {
            pid: pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            own: known.is_some_and(|known| known.uid() == rustix::process::geteuid().as_raw()),
            asked: Arc::default(),
        }
    }

    /// Its number; 0 where it has none here.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// What may speak through it.
    fn look(&self, host: &Host) -> Kind {
        // A manager that has guests in its own process can only trust itself.
        if self.pid == std::process::id() {
            return Kind::Tool;
        }
        if host.runs_guest(self.pid) {
            return Kind::Guest;
        }
        // Processes of other users may be hidden, and those in namespaces further out have no number here: they came
        // past the file's permissions.
        if !self.own || self.pid == 0 {
            return Kind::Tool;
        }
        match mark::is_on(self.pid) {
            Some(true) => Kind::Guest,
            Some(false) => Kind::Tool,
            None => Kind::Gone,
        }
    }

    /// Whether it may ask; a guest's process is counted.
    fn check(&self, host: &Host) -> Result<(), ApiError> {
        match self.look(host) {
            Kind::Tool => Ok(()),
            Kind::Gone => Err(ApiError::Guest),
            Kind::Guest => {
                host.handle(Event::Intruded(self.pid));
                Err(ApiError::Guest)
            }
        }
    }

    /// Its connection is over: a guest's process has no business there, whether it came to ask anything or not.
    pub(super) async fn leave(self, served: Served) {
        if !self.asked.load(Ordering::Relaxed) {
            let _ = served.aside(move |host| self.check(host)).await;
        }
    }
}

/// What an asker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A user's process.
    Tool,
    /// A guest may have taken it over.
    Guest,
    /// It has ended. It has no use for an answer, and what it was is not known any more.
    Gone,
}

/// Turns guests' processes away.
pub(super) async fn admit(
    State(served): State<Served>,
    Extension(asker): Extension<Asker>,
    request: Request,
    next: Next,
) -> Response {
    asker.asked.store(true, Ordering::Relaxed);
    match served.aside(move |host| asker.check(host)).await {
        Ok(_) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}
