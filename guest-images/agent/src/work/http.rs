//! A keep-alive HTTP/1.1 client, as much as is needed to fetch files from a server on the same machine.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The longest body taken.
const MAX_BODY: usize = 128 << 20;

/// A connection.
pub(super) struct HttpClient {
    stream: BufReader<UnixStream>,
}

impl HttpClient {
    pub(super) fn open(socket: &Path) -> io::Result<Self> {
        Ok(Self {
            stream: BufReader::new(UnixStream::connect(socket)?),
        })
    }

    /// Fetches `path` into `body`; any status but 200 is an error.
    pub(super) fn get(&mut self, path: &str, body: &mut Vec<u8>) -> io::Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        read_answer(&mut self.stream, body)
    }
}

fn read_answer(stream: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    let status = header_line(stream)?;
    if !status.starts_with("HTTP/1.1 200") {
        return Err(io::Error::other(format!("status {status:?}")));
    }
    let mut length = None;
    loop {
        let line = header_line(stream)?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value
                .trim()
                .parse::<usize>()
                .ok()
                .filter(|length| *length <= MAX_BODY);
        }
    }
    let length = length.ok_or_else(|| io::Error::other("an answer without a usable length"))?;
    body.resize(length, 0);
    stream.read_exact(body)
}

fn header_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if stream.take(8192).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        read_answer(&mut text.as_bytes(), &mut body).map(|()| body)
    }

    #[test]
    fn bodies_are_read_by_their_length() {
        let text = "HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 3\r\n\r\nabcdef";
        assert_eq!(answer(text).unwrap(), b"abc");
    }

    #[test]
    fn bad_answers_are_errors() {
        for text in [
            "",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        ] {
            assert!(answer(text).is_err(), "{text:?}");
        }
    }
}
