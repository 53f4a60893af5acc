//! Which process asks, and whether it may.
//!
//! The socket is for the manager's own user, and so are the processes of guests, of which one that its guest has taken
//! over would stop its neighbours or take their memory. They are known by their numbers, which the kernel says, and by
//! their mark: guests of other managers, and of none.

use axum::Extension;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::net::UnixStream;
use tokio::net::unix::UCred;

use super::failure::ApiError;
use super::routes::Served;
use crate::host::Host;
use levy_protocol::mark;

/// The process at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pid: u32,
    /// It belongs to the user of this manager.
    own: bool,
}

impl Asker {
    /// Who connected `stream`. Where the kernel does not say, which it always does, it is no process at all.
    pub(super) fn of(stream: &UnixStream) -> Self {
        let known = stream.peer_cred().ok();
        let pid = known.as_ref().and_then(UCred::pid);
        Self {
            pid: pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            own: known.is_some_and(|known| known.uid() == rustix::process::geteuid().as_raw()),
        }
    }

    /// Whether a guest may speak through it.
    fn may_be_a_guest(self, host: &Host) -> bool {
        // A manager that has guests in its own process can only trust itself.
        if self.pid == std::process::id() {
            return false;
        }
        // Processes of other users may be hidden, and those in namespaces further out have no number here: they came
        // past the file's permissions. One that can be seen and is gone has no use for an answer.
        let marked = self.own && self.pid != 0 && mark::is_on(self.pid) != Some(false);
        marked || host.runs_guest(self.pid)
    }
}

/// Turns guests' processes away.
pub(super) async fn admit(
    State(served): State<Served>,
    Extension(asker): Extension<Asker>,
    request: Request,
    next: Next,
) -> Response {
    let checked = served.aside(move |host| match asker.may_be_a_guest(host) {
        true => {
            host.note_intruder(asker.pid);
            Err(ApiError::Guest)
        }
        false => Ok(()),
    });
    match checked.await {
        Ok(_) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}
