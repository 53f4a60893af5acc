//! One JSON object a line, bounded, over any byte stream.

use std::io::{self, Read, Write};

use serde::Serialize;

use super::reading::{self, Message, ReadError};
use super::version::{Reading, VersionError};

/// Longest line, newline included, bytes.
const LINE_LIMIT: usize = 64 << 10;

/// Why no message could be read from a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// A line that is not a message of this protocol.
    #[error("malformed message from the peer: {0}")]
    Message(String),
    /// A peer of a version that is not spoken here.
    #[error(transparent)]
    Version(VersionError),
    /// A line without end.
    #[error("the peer sent a line of more than {LINE_LIMIT} bytes")]
    TooLong,
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<T> {
    /// A message.
    Message(T),
    /// A message that only a newer version knows; the peer may send such if it is of one.
    Unknown,
    /// Nothing complete yet: the stream would block or timed out.
    Later,
    /// The peer closed the connection.
    End,
}

/// Collects lines from a stream, so that half a line is never lost at a time-out.
#[derive(Debug, Default)]
pub struct Lines {
    /// Bytes received and not yet handed out.
    pending: Vec<u8>,
    /// Of those, bytes known to hold no newline.
    searched: usize,
    /// How unknown words are read: as the introduction says.
    reading: Reading,
}

impl Lines {
    /// Reads the next message from `stream`, with at most one call to `read` where it brings no whole line.
    ///
    /// # Errors
    /// See [`LineError`]; the connection is of no more use then.
    pub fn next<T: Message>(&mut self, stream: &mut impl Read) -> Result<Line<T>, LineError> {
        if let Some(line) = self.take_line() {
            return self.parse(&line);
        }
        let mut bytes = [0; 8192];
        match stream.read(&mut bytes) {
            Ok(0) => Ok(Line::End),
            Ok(count) => {
                self.pending.extend_from_slice(&bytes[..count]);
                match self.take_line() {
                    Some(line) => self.parse(&line),
                    None if self.pending.len() >= LINE_LIMIT => Err(LineError::TooLong),
                    None => Ok(Line::Later),
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Ok(Line::Later)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Line::Later),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes `message` as one line.
    ///
    /// # Errors
    /// When the stream does not take it.
    pub fn send(stream: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
        stream.write_all(&Self::encode(message)?)
    }

    /// `message` as one line.
    ///
    /// # Errors
    /// When it has no form in JSON.
    pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        Ok(line)
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        let end = self.pending[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n');
        let Some(end) = end else {
            self.searched = self.pending.len();
            return None;
        };
        let rest = self.pending.split_off(self.searched + end + 1);
        self.searched = 0;
        Some(std::mem::replace(&mut self.pending, rest))
    }

    fn parse<T: Message>(&mut self, line: &[u8]) -> Result<Line<T>, LineError> {
        if line.len() > LINE_LIMIT {
            return Err(LineError::TooLong);
        }
        let (message, next) = reading::read(line, self.reading).map_err(|error| match error {
            ReadError::Version(error) => LineError::Version(error),
            other => LineError::Message(other.to_string()),
        })?;
        self.reading = next;
        Ok(message.map_or(Line::Unknown, Line::Message))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::link::{FromManager, FromVmm, Hello, Orders};

    /// A stream that hands out its pieces one `read` at a time, then would block.
    struct Pieces(VecDeque<Vec<u8>>);

    impl Read for Pieces {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let piece = self.0.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
            into[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    fn hello() -> FromVmm {
        let hello = Hello::new("web-1", 512 << 20);
        FromVmm::Hello(hello.with_min(128 << 20).in_domain("web"))
    }

    #[test]
    fn messages_survive_every_way_of_cutting_the_stream() {
        let mut bytes = Vec::new();
        Lines::send(&mut bytes, &hello()).unwrap();
        Lines::send(&mut bytes, &hello()).unwrap();
        for cut in 0..bytes.len() {
            let (a, b) = bytes.split_at(cut.max(1));
            let mut stream = Pieces([a.to_vec(), b.to_vec()].into());
            let (mut lines, mut seen) = (Lines::default(), 0);
            for _ in 0..6 {
                if let Line::Message(message) = lines.next::<FromVmm>(&mut stream).unwrap() {
                    assert_eq!(message, hello());
                    seen += 1;
                }
            }
            assert_eq!(seen, 2, "cut at {cut}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_memory() {
        let mut stream = Pieces(std::iter::repeat_n(vec![b'x'; 8192], 100).collect());
        let mut lines = Lines::default();
        let error = (0..100).find_map(|_| lines.next::<FromVmm>(&mut stream).err());
        assert!(matches!(error, Some(LineError::TooLong)), "{error:?}");
        assert!(stream.0.len() > 80);
    }

    #[test]
    fn unknown_fields_and_types_are_refused() {
        for line in [
            "{\"type\":\"hello\"}\n",
            "{\"type\":\"what\"}\n",
            "[]\n",
            "{\"type\":\"stop\",\"now\":1}\n",
        ] {
            let mut stream = Pieces([line.as_bytes().to_vec()].into());
            let result = Lines::default().next::<FromVmm>(&mut stream);
            assert!(matches!(result, Err(LineError::Message(_))), "{line}: {result:?}");
        }
    }

    #[test]
    fn orders_are_read_as_they_were_written() {
        let orders = FromManager::Orders(Orders {
            scan_cpu: 0.1,
            limit_bytes: Some(7),
            ..Orders::default()
        });
        let mut bytes = Vec::new();
        Lines::send(&mut bytes, &orders).unwrap();
        let read = Lines::default()
            .next::<FromManager>(&mut Pieces([bytes].into()))
            .unwrap();
        assert_eq!(read, Line::Message(orders));
    }
}
