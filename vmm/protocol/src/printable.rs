//! Words of other processes, fit for a terminal and a log.

use std::borrow::Cow;

/// `text` with each control character, line ends included, written as its escape: `\n`, `\u{1b}`. What another process
/// chose moves no cursor, changes no colour and begins no line of its own.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out_and_nothing_else_changes() {
        assert_eq!(
            printable("/a\n\u{1b}[2J\u{9b}x\u{7f}"),
            "/a\\n\\u{1b}[2J\\u{9b}x\\u{7f}"
        );
        let text = "\"übel\" \\ 'x'";
        assert!(matches!(printable(text), Cow::Borrowed(same) if same == text));
    }
}
