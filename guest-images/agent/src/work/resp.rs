//! The client's half of redis' protocol, as much as is needed to store values and read them back.

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection to a redis server. Requests may be sent ahead of reading their answers.
pub(super) struct Connection {
    reader: BufReader<UnixStream>,
    writer: BufWriter<UnixStream>,
}

/// What redis answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// `+OK` and the like.
    Simple(String),
    /// A value.
    Bulk(Vec<u8>),
    /// No such key.
    Nil,
    /// A number.
    Number(i64),
}

impl Connection {
    pub(super) fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        Ok(Self {
            reader: BufReader::new(stream.try_clone()?),
            writer: BufWriter::new(stream),
        })
    }

    /// Sends a request; [`Connection::flush`] makes sure that it leaves.
    pub(super) fn send(&mut self, words: &[&[u8]]) -> io::Result<()> {
        write!(self.writer, "*{}\r\n", words.len())?;
        for word in words {
            write!(self.writer, "${}\r\n", word.len())?;
            self.writer.write_all(word)?;
            self.writer.write_all(b"\r\n")?;
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    /// Reads the answer to the oldest request.
    pub(super) fn receive(&mut self) -> io::Result<Answer> {
        receive(&mut self.reader)
    }

    /// Sends one request and reads its answer.
    pub(super) fn ask(&mut self, words: &[&[u8]]) -> io::Result<Answer> {
        self.send(words)?;
        self.flush()?;
        self.receive()
    }
}

fn receive(reader: &mut impl BufRead) -> io::Result<Answer> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let wrong = || io::Error::other(format!("redis answers {:?}", line.trim_end()));
    let kind = line
        .as_bytes()
        .first()
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
    let rest = line.get(1..).unwrap_or("").trim_end();
    let number = || rest.parse::<i64>().map_err(|_| wrong());
    match kind {
        b'+' => Ok(Answer::Simple(rest.to_owned())),
        b':' => Ok(Answer::Number(number()?)),
        b'$' => match usize::try_from(number()?) {
            Err(_) => Ok(Answer::Nil),
            Ok(length) => {
                let mut value = vec![0; length + 2];
                reader.read_exact(&mut value)?;
                value.truncate(length);
                Ok(Answer::Bulk(value))
            }
        },
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_one_by_one() {
        let mut bytes = &b"+OK\r\n$3\r\na\r\n\r\n$-1\r\n:12\r\n-ERR no\r\n"[..];
        let mut next = || receive(&mut bytes);
        assert_eq!(next().unwrap(), Answer::Simple("OK".into()));
        assert_eq!(next().unwrap(), Answer::Bulk(b"a\r\n".to_vec()));
        assert_eq!(next().unwrap(), Answer::Nil);
        assert_eq!(next().unwrap(), Answer::Number(12));
        assert!(next().unwrap_err().to_string().contains("ERR no"));
        assert_eq!(next().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
