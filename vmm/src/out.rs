//! What a command was asked for, on standard output.

use std::io::{self, ErrorKind, Write};

/// The answer could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct NotShown(#[source] io::Error);

/// Writes `text`. A reader that has closed its end, as `head` does, had what it wanted.
pub(crate) fn show(text: &str) -> Result<(), NotShown> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(NotShown(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
