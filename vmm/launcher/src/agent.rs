//! The launcher's end of an agent's channel.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::thread;

use levy_agent::{Command, Event, MAX_LINE};

use super::Note;

/// A connection to the agent in a guest.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
}

impl Agent {
    /// Connects to the socket at `path`; what the agent of guest `guest` says goes to `notes`.
    pub fn connect(path: &Path, guest: usize, notes: &Sender<Note>) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        let reader = BufReader::new(stream.try_clone()?);
        let notes = notes.clone();
        thread::Builder::new()
            .name(format!("agent {guest}"))
            .stack_size(256 << 10)
            .spawn(move || listen(reader, guest, &notes))
            .map_err(levy_protocol::not_started)?;
        Ok(Self { stream })
    }

    /// Sends a command.
    pub fn send(&mut self, command: &Command) -> io::Result<()> {
        self.stream.write_all(command.to_line().as_bytes())
    }
}

fn listen(mut reader: impl BufRead, guest: usize, notes: &Sender<Note>) {
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(MAX_LINE as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // What is not an event is the guest's fault and says nothing.
        let Some(event) = std::str::from_utf8(&line)
            .ok()
            .and_then(|line| Event::parse(line).ok())
        else {
            continue;
        };
        if notes.send(Note::Agent(guest, Box::new(event))).is_err() {
            return;
        }
    }
}
