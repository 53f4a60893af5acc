//! What a command was asked for, on standard output.

use std::io::{self, ErrorKind, Write};

use levy_protocol::printable_json;
use serde::Serialize;

/// The answer could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct NotShown(#[source] io::Error);

/// `value` as one line of JSON, with its end. No word of another process in it steers a terminal.
pub(crate) fn json(value: &impl Serialize) -> String {
    ended(serde_json::to_string(value))
}

/// The same on several lines.
pub(crate) fn pretty_json(value: &impl Serialize) -> String {
    ended(serde_json::to_string_pretty(value))
}

fn ended(text: serde_json::Result<String>) -> String {
    let text = text.unwrap_or_else(|error| error.to_string());
    text.lines()
        .fold(String::new(), |all, line| all + &printable_json(line) + "\n")
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_json_has_a_raw_character_that_steers_a_terminal() {
        let value = serde_json::json!({"fleet": "a\n\u{1b}[2J\u{7f}\u{9b}2J\u{202e}\u{2028}\u{2029}b", "control": [1]});
        for text in [json(&value), pretty_json(&value)] {
            let steers = |letter: char| {
                letter != '\n' && letter.is_control() || ('\u{2028}'..='\u{202e}').contains(&letter)
            };
            assert!(!text.contains(steers) && text.ends_with("}\n"), "{text:?}");
            assert!(text.contains("\\u009b2J\\u202e\\u2028\\u2029b"), "{text:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
        }
        assert_eq!(json(&value).lines().count(), 1);
    }
}
