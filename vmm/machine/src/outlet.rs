//! A way out for output that may not be taken: a bounded buffer, and a thread that carries it.
//!
//! A pipe that is full and not read, or a terminal that is stopped with Ctrl-S, holds each thread that writes to it. Here
//! that is a thread with nothing else to do. What does not fit the buffer meanwhile is dropped whole, counted, and the
//! count is written once something is taken again.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::confine::{self, Role};
use crate::lock::lock;

/// Bytes that a pipe takes without waiting where it takes any: PIPE_BUF, all that `poll` promises of it.
pub(crate) const AT_ONCE: usize = 4096;

/// Bytes of the longest note of [`cut`].
const NOTE: usize = 40;

/// Writes `line` and its end where `to` takes them at once: a line that is rare, or the last one, and no reason to start
/// a thread. Of a line longer than [`AT_ONCE`] the begin.
pub(crate) fn offer(to: impl AsFd, line: &str) {
    let mut ends = [PollFd::new(&to, PollFlags::OUT)];
    if poll(&mut ends, Some(&Timespec::default())).is_ok_and(|count| count > 0) {
        let line = cut(line, AT_ONCE - 1) + "\n";
        let _ = rustix::io::write(&to, line.as_bytes());
    }
}

/// `text`, or as much of its begin as fits `most` bytes with a note of how much is missing.
pub(crate) fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let (kept, missing) = text.split_at(text.floor_char_boundary(most.saturating_sub(NOTE)));
    format!("{kept}... ({} bytes more)", missing.len())
}

/// What could not be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// Calls of [`Outlet::push`] whose bytes they were.
    pub(crate) pieces: u64,
    /// Bytes.
    pub(crate) bytes: u64,
}

/// How an outlet works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// The thread's name.
    pub(crate) name: &'static str,
    /// What the thread may do.
    pub(crate) role: Role,
    /// Bytes that wait at most.
    pub(crate) most: usize,
    /// What is written in the place of what was lost.
    pub(crate) note: fn(Lost) -> String,
}

/// The way to one writer. Its thread ends when this is dropped and all is carried.
#[derive(Debug)]
pub(crate) struct Outlet {
    shared: Arc<Shared>,
    most: usize,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<OutletState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OutletState {
    waiting: Load,
    lost: Lost,
    /// The thread has a load in its hands.
    carrying: bool,
    closed: bool,
}

/// What is written at once.
#[derive(Debug, Default)]
struct Load {
    bytes: Vec<u8>,
    pieces: u64,
}

impl Outlet {
    /// Starts the thread that carries to `to`.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub(crate) fn start(manner: Manner, to: Box<dyn Write + Send>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let carried = Arc::clone(&shared);
        let body = move || {
            confine::enter(manner.role);
            carry(&carried, manner.note, to);
        };
        let builder = thread::Builder::new().name(manner.name.into());
        let thread = builder.stack_size(128 << 10).spawn(body);
        thread.map_err(levy_protocol::not_started)?;
        let most = manner.most;
        Ok(Self { shared, most })
    }

    /// Puts `piece` behind what waits, or drops it whole. Never waits for the writer.
    pub(crate) fn push(&self, piece: &[u8]) {
        let mut state = lock(&self.shared.state);
        if state.waiting.bytes.len() + piece.len() > self.most {
            state.lose(Lost {
                pieces: 1,
                bytes: piece.len() as u64,
            });
            return;
        }
        state.waiting.bytes.extend_from_slice(piece);
        state.waiting.pieces += 1;
        self.shared.changed.notify_all();
    }

    /// Waits until all that was pushed is written, or lost, but no longer than `most` where that is given.
    pub(crate) fn settle(&self, most: Option<Duration>) {
        let began = Instant::now();
        let mut state = lock(&self.shared.state);
        while state.carrying || !state.waiting.bytes.is_empty() {
            let left = most.map_or(Duration::MAX, |most| most.saturating_sub(began.elapsed()));
            if left.is_zero() {
                return;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
    }
}

impl OutletState {
    fn lose(&mut self, lost: Lost) {
        self.lost.pieces += lost.pieces;
        self.lost.bytes += lost.bytes;
    }
}

impl Shared {
    /// Waits for something to write; what was lost before it. `None` when there will be nothing any more.
    fn next(&self) -> Option<(Lost, Load)> {
        let mut state = lock(&self.state);
        while state.waiting.bytes.is_empty() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let load = std::mem::take(&mut state.waiting);
        state.carrying = !load.bytes.is_empty();
        let lost = std::mem::take(&mut state.lost);
        state.carrying.then_some((lost, load))
    }

    /// A load was written, or `lost`.
    fn carried(&self, lost: Lost) {
        let mut state = lock(&self.state);
        state.carrying = false;
        state.lose(lost);
        self.changed.notify_all();
    }
}

fn carry(shared: &Shared, note: fn(Lost) -> String, mut to: Box<dyn Write + Send>) {
    while let Some((before, load)) = shared.next() {
        let noted = match before.pieces {
            0 => Ok(()),
            _ => to.write_all(note(before).as_bytes()),
        };
        let written = noted
            .and_then(|()| to.write_all(&load.bytes))
            .and_then(|()| to.flush());
        shared.carried(match written {
            Ok(()) => Lost::default(),
            // A full disk may have room again, and a closed pipe counts for ever.
            Err(_) => Lost {
                pieces: before.pieces + load.pieces,
                bytes: before.bytes + load.bytes.len() as u64,
            },
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A pipe that takes as much as `poll` promises, and its reader.
    fn nearly_full_pipe() -> (io::PipeReader, io::PipeWriter) {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        while rustix::io::write(&writer, &[b'x'; AT_ONCE]).is_ok() {}
        rustix::io::ioctl_fionbio(&writer, false).unwrap();
        io::Read::read_exact(&mut reader, &mut [0; AT_ONCE]).unwrap();
        (reader, writer)
    }

    #[test]
    fn a_line_of_any_length_holds_no_thread() {
        for line in ["ü".repeat(100_000), "x".repeat(AT_ONCE - 1), "short".to_owned()] {
            let (mut reader, writer) = nearly_full_pipe();
            let (say, heard) = channel();
            let whole = line.clone();
            thread::spawn(move || {
                offer(&writer, &line);
                say.send(()).unwrap();
            });
            let done = heard.recv_timeout(Duration::from_secs(60));
            assert!(done.is_ok(), "a line of {} bytes waits to be read", whole.len());
            let mut text = String::new();
            io::Read::read_to_string(&mut reader, &mut text).unwrap();
            let written = text.trim_start_matches('x').trim_end_matches('\n');
            match whole.len() < AT_ONCE {
                true => assert!(text.ends_with(&format!("{whole}\n"))),
                false => assert!(written.ends_with("bytes more)"), "{written}"),
            }
        }
    }

    #[test]
    fn what_is_cut_is_counted_in_whole_letters() {
        assert_eq!(cut("text", 4), "text");
        let text = "ä".repeat(100);
        for most in [0, 40, 41, 60, 199] {
            let short = cut(&text, most);
            let (kept, note) = short.split_once("... (").unwrap();
            assert_eq!(note, format!("{} bytes more)", text.len() - kept.len()));
            assert!(short.len() <= most.max(NOTE) && text.starts_with(kept), "{short}");
        }
    }

    const MANNER: Manner = Manner {
        name: "outlet",
        role: Role::Stream,
        most: 100,
        note: |lost| format!("<{} {}>", lost.pieces, lost.bytes),
    };

    /// Takes a write with each word that the test says, and says so: `false` refuses.
    struct Held(Receiver<bool>, Sender<Vec<u8>>);

    impl Write for Held {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.recv() {
                Ok(true) => {
                    self.1.send(bytes.to_vec()).unwrap();
                    Ok(bytes.len())
                }
                _ => Err(io::ErrorKind::StorageFull.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_not_taken_is_dropped_and_counted_and_holds_no_thread() {
        let (reader, writer) = io::pipe().unwrap();
        let outlet = Outlet::start(MANNER, Box::new(writer)).unwrap();
        // Far more than a pipe holds.
        for _ in 0..200_000 {
            outlet.push(b"0123456789");
        }
        outlet.settle(Some(Duration::from_millis(10)));
        let read = thread::spawn(move || io::read_to_string(reader).unwrap());
        // The thread goes on: what was lost is noted before what comes next.
        outlet.settle(None);
        outlet.push(b"end");
        outlet.settle(None);
        drop(outlet);
        let text = read.join().unwrap();
        let notes = text.split('<').skip(1);
        let lost: u64 = notes
            .map(|note| note.split(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        let written = text.matches("0123456789").count() as u64;
        assert_eq!(lost + written, 200_000, "{lost} {written}");
        assert!(lost > 100_000, "{lost}");
        assert!(text.ends_with("end"), "{text:?}");
    }

    #[test]
    fn what_is_refused_is_counted_until_there_is_room_again() {
        let ((say, heard), (took, taken)) = (channel(), channel());
        let outlet = Outlet::start(MANNER, Box::new(Held(heard, took))).unwrap();
        for piece in ["one", "three"] {
            say.send(false).unwrap();
            outlet.push(piece.as_bytes());
            outlet.settle(None);
        }
        (0..2).for_each(|_| say.send(true).unwrap());
        outlet.push(b"here");
        outlet.settle(None);
        let all: Vec<u8> = taken.try_iter().flatten().collect();
        assert_eq!(String::from_utf8(all).unwrap(), "<2 8>here");
    }

    #[test]
    fn settling_ends_where_nothing_is_taken() {
        let (say, heard) = channel();
        let outlet = Outlet::start(MANNER, Box::new(Held(heard, channel().0))).unwrap();
        outlet.push(b"held");
        let began = Instant::now();
        outlet.settle(Some(Duration::from_millis(30)));
        assert!(began.elapsed() >= Duration::from_millis(30));
        drop(say);
        outlet.settle(None);
    }
}
