//! A guest whose owner has nothing to do but wait for it.

use std::io;
use std::ops::{Deref, DerefMut};
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use levy_agent::Event as AgentEvent;

use super::{Note, Session, SessionFiles};

/// How long the last words of an agent may come behind the end of its guest's process: both are read by threads.
const LATE: Duration = Duration::from_millis(100);
/// Notes that wait to be heard.
const UNHEARD: usize = 1024;
/// How long a process may take to end once it has closed its report.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// A session whose notes wait until they are asked for.
pub struct OneGuest {
    session: Session,
    heard: Receiver<Note>,
    /// Its process has closed its report.
    closed: bool,
}

/// Why a wait came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The guest's process is gone.
    #[error("the VMM has ended: {0}")]
    Ended(String),
    /// The guest took too long.
    #[error("nothing came within {} seconds", .0.as_secs())]
    Late(Duration),
    /// The agent cannot be connected to.
    #[error("no way to the agent")]
    Agent(#[source] io::Error),
}

impl OneGuest {
    /// As [`Session::start`].
    ///
    /// # Errors
    /// As there.
    pub fn start(command: Command, files: SessionFiles) -> io::Result<Self> {
        // The threads that read wait when so many are not heard yet, and what they read from drops lines.
        let (notes, heard) = sync_channel(UNHEARD);
        let listener = move |note| {
            let _ = notes.send(note);
        };
        Ok(Self {
            session: Session::start(command, files, listener)?,
            heard,
            closed: false,
        })
    }

    /// Waits until the guest runs and its agent is connected to, which has not spoken yet.
    ///
    /// # Errors
    /// When it does not run within `patience`.
    pub fn running(&mut self, patience: Duration) -> Result<(), WaitError> {
        let until = Instant::now() + patience;
        while !self.session.is_connected() {
            self.note(until).unwrap_or(Err(WaitError::Late(patience)))?;
        }
        Ok(())
    }

    /// What the agent says next.
    ///
    /// # Errors
    /// When it says nothing within `patience`, or has said everything.
    pub fn next(&mut self, patience: Duration) -> Result<AgentEvent, WaitError> {
        let until = Instant::now() + patience;
        loop {
            let note = self.note(until).unwrap_or(Err(WaitError::Late(patience)))?;
            if let Note::Agent(event) = note {
                return Ok(*event);
            }
        }
    }

    /// What the agent has said by now and was not asked for.
    pub fn next_if_there(&mut self) -> Option<AgentEvent> {
        self.next(Duration::ZERO).ok()
    }

    /// Waits for the guest's end, and its process's.
    ///
    /// # Errors
    /// When it does not end within `patience`, or its process cannot be waited for.
    pub fn end(&mut self, patience: Duration) -> Result<ExitStatus, WaitError> {
        let until = Instant::now() + patience;
        while !self.closed {
            match self.note(until) {
                // An end during the start: then there is no agent any more either.
                Some(Ok(_) | Err(WaitError::Agent(_))) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(WaitError::Late(patience)),
            }
        }
        let status = self.session.wait(END_PATIENCE);
        status.map_err(|error| WaitError::Ended(self.session.how_it_ended(&Err(error))))
    }

    /// The next note, once what it calls for is done; `None` when there is none by `until`.
    fn note(&mut self, until: Instant) -> Option<Result<Note, WaitError>> {
        let left = match self.closed {
            true => LATE,
            false => until.saturating_duration_since(Instant::now()),
        };
        let Ok(note) = self.heard.recv_timeout(left) else {
            return self.closed.then(|| Err(self.gone()));
        };
        match &note {
            Note::Vmm(event) => {
                self.session.heard(event);
                if let Err(error) = self.session.connect() {
                    return Some(Err(WaitError::Agent(error)));
                }
            }
            Note::Closed => self.closed = true,
            Note::Agent(_) | Note::Missed(_) => {}
        }
        Some(Ok(note))
    }

    fn gone(&mut self) -> WaitError {
        let status = self.session.wait(END_PATIENCE);
        WaitError::Ended(self.session.how_it_ended(&status))
    }
}

impl Deref for OneGuest {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for OneGuest {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}
