//! The line to the agent in a guest.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use levy_agent::{Command, Event};

use super::lines::{self, Taken};
use super::note::{Listener, Note};

/// A connection to the agent in a guest.
#[derive(Debug)]
pub(super) struct Agent {
    stream: UnixStream,
}

impl Agent {
    /// Connects to the socket at `path`; what the agent says goes to `listener`.
    pub(super) fn connect(path: &Path, listener: &Listener) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        let reader = BufReader::new(stream.try_clone()?);
        let listener = Listener::clone(listener);
        thread::Builder::new()
            .name("agent".into())
            .stack_size(256 << 10)
            .spawn(move || listen(reader, &listener))
            .map_err(levy_protocol::not_started)?;
        Ok(Self { stream })
    }

    /// Sends a command.
    pub(super) fn send(&mut self, command: &Command) -> io::Result<()> {
        self.stream.write_all(command.to_line().as_bytes())
    }
}

fn listen(reader: impl BufRead, listener: &Listener) {
    lines::listen(reader, |heard| match heard {
        Taken::Missed(lines) => listener(Note::Missed(lines)),
        // What is not an event is the guest's fault and says nothing.
        Taken::Line(line) => {
            if let Ok(event) = Event::parse(&line) {
                listener(Note::Agent(Box::new(event)));
            }
        }
    });
}
