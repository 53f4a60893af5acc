//! What a command was asked for, on standard output.

use std::io::{self, ErrorKind, Write};

/// The answer could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct NotShown(#[source] io::Error);

/// Writes `text`.
pub(crate) fn show(text: &str) -> Result<(), NotShown> {
    shown(io::stdout().write_all(text.as_bytes()))
}

/// What becomes of a command that has `written` all to standard output, or not.
///
/// # Errors
/// When it could not be written. A reader that has closed its end, as `head` does, had what it wanted.
pub fn shown(written: io::Result<()>) -> Result<(), NotShown> {
    match written.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(NotShown(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
