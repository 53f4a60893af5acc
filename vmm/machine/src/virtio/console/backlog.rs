//! Lines on their way to a reader who may be slow.

use std::collections::VecDeque;
use std::io::{self, Write};

/// Bytes in the longest line; longer ones are dropped.
pub(super) const MAX_LINE: usize = 64 << 10;
/// Bytes that wait at most.
const MAX_WAITING: usize = 256 << 10;

/// A bounded queue of whole lines.
#[derive(Debug, Default)]
pub struct Backlog {
    partial: Vec<u8>,
    oversized: bool,
    lines: VecDeque<Vec<u8>>,
    waiting: usize,
    /// Bytes of the first line that the reader has.
    sent: usize,
    dropped: u64,
}

impl Backlog {
    /// Adds output of the guest and shows each line that it completes to `seen`.
    pub fn push(&mut self, bytes: &[u8], mut seen: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            if self.partial.len() + piece.len() > MAX_LINE {
                self.oversized = true;
                self.partial.clear();
            }
            if !self.oversized {
                self.partial.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                if std::mem::take(&mut self.oversized) {
                    self.dropped += 1;
                } else {
                    seen(&line);
                    self.keep(line);
                }
            }
        }
    }

    /// Output of the guest is missing here: the line that it is in is dropped.
    pub fn miss(&mut self) {
        self.oversized = true;
        self.partial.clear();
    }

    fn keep(&mut self, line: Vec<u8>) {
        self.waiting += line.len();
        self.lines.push_back(line);
        while self.waiting > MAX_WAITING {
            // The reader has part of the first line: the next one goes instead.
            let oldest = usize::from(self.sent > 0);
            let Some(line) = self.lines.remove(oldest) else {
                break;
            };
            self.waiting -= line.len();
            self.dropped += 1;
        }
    }

    /// Writes what waits until `reader` takes no more.
    ///
    /// # Errors
    /// When the reader is gone. [`io::ErrorKind::WouldBlock`] is not an error here.
    pub fn send(&mut self, mut reader: impl Write) -> io::Result<()> {
        while let Some(line) = self.lines.front() {
            match reader.write(&line[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            if self.sent == line.len() {
                self.waiting -= line.len();
                self.lines.pop_front();
                self.sent = 0;
            }
        }
        Ok(())
    }

    /// The next reader gets the line from its start that the last one had part of.
    pub fn reader_left(&mut self) {
        self.sent = 0;
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Lines that no reader will see.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(backlog: &mut Backlog) -> Vec<u8> {
        let mut out = Vec::new();
        backlog.send(&mut out).unwrap();
        out
    }

    #[test]
    fn only_whole_lines_leave_and_each_is_seen_once() {
        let mut backlog = Backlog::default();
        let mut seen = Vec::new();
        for piece in ["{\"a\"", ":1}\n{\"b\":2}\n{", "}\n"] {
            backlog.push(piece.as_bytes(), |line| seen.push(line.to_vec()));
        }
        assert_eq!(
            seen,
            [b"{\"a\":1}\n".to_vec(), b"{\"b\":2}\n".to_vec(), b"{}\n".to_vec()]
        );
        assert_eq!(drain(&mut backlog), b"{\"a\":1}\n{\"b\":2}\n{}\n");
    }

    #[test]
    fn the_newest_lines_survive_an_absent_reader() {
        let mut backlog = Backlog::default();
        for n in 0..100_000 {
            backlog.push(format!("line {n}\n").as_bytes(), |_| {});
        }
        assert!(backlog.dropped() > 0);
        let out = drain(&mut backlog);
        assert!(out.len() <= MAX_WAITING);
        assert!(out.ends_with(b"line 99999\n"));
        assert!(out.starts_with(b"line "));
    }

    #[test]
    fn a_line_of_which_a_part_is_missing_is_dropped() {
        let mut backlog = Backlog::default();
        backlog.push(b"whole\nbeg", |_| {});
        backlog.miss();
        backlog.push(b"in\nnext\n", |_| {});
        assert_eq!(
            (drain(&mut backlog), backlog.dropped()),
            (b"whole\nnext\n".to_vec(), 1)
        );
    }

    #[test]
    fn a_line_without_end_costs_bounded_memory() {
        let mut backlog = Backlog::default();
        for _ in 0..100 {
            backlog.push(&[b'x'; 4096], |_| {});
        }
        assert!(backlog.partial.capacity() <= 2 * MAX_LINE);
        backlog.push(b"\nshort\n", |_| {});
        assert_eq!((drain(&mut backlog), backlog.dropped()), (b"short\n".to_vec(), 1));
    }
}
