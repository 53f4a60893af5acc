//! The host's end of the agent's channel: a thread reads events, the test writes commands.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use guest_images::agent_protocol::{Event, MAX_LINE};

/// How often the socket is looked for while the VMM makes it: there is nothing to be told by.
const LOOK: Duration = Duration::from_millis(5);

/// Commands go in, events come out.
pub(crate) struct Channel {
    pub(crate) events: Receiver<Event>,
    socket: PathBuf,
    stream: Option<UnixStream>,
    tell: Sender<Event>,
}

impl Channel {
    /// A channel to the socket at `path`, which need not exist yet.
    pub(crate) fn to(path: PathBuf) -> Self {
        let (tell, events) = channel();
        Self {
            events,
            socket: path,
            stream: None,
            tell,
        }
    }

    /// Connects if that has not happened; false while the other end does not listen.
    pub(crate) fn connect(&mut self) -> bool {
        if self.stream.is_some() {
            return true;
        }
        let Ok(stream) = UnixStream::connect(&self.socket) else {
            thread::sleep(LOOK);
            return false;
        };
        let (Ok(reading), tell) = (stream.try_clone(), self.tell.clone()) else {
            return false;
        };
        thread::spawn(move || read(reading, &tell));
        self.stream = Some(stream);
        true
    }

    /// Sends one line.
    pub(crate) fn send(&mut self, line: &str) -> std::io::Result<()> {
        match &mut self.stream {
            Some(stream) => stream.write_all(line.as_bytes()),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        }
    }
}

/// A guest's lines are the guest's business: what is not an event is dropped.
fn read(stream: UnixStream, tell: &Sender<Event>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reader).take(MAX_LINE as u64);
        match limited.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if let Ok(event) = Event::parse(&String::from_utf8_lossy(&line))
            && tell.send(event).is_err()
        {
            return;
        }
    }
}
