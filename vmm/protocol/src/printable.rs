//! Words of other processes, fit for a terminal and a log.

use std::borrow::Cow;
use std::fmt::Write;

/// `text` with each control character, line ends included, written as its escape: `\n`, `\u{1b}`. What another process
/// chose moves no cursor, changes no colour, turns no direction of writing and begins no line of its own.
pub fn printable(text: &str) -> Cow<'_, str> {
    with_escapes(text, |shown, letter| shown.extend(letter.escape_default()))
}

/// The same for a line of JSON, which stays JSON of the same value: such characters are in its strings alone.
pub fn printable_json(line: &str) -> Cow<'_, str> {
    with_escapes(line, |shown, letter| {
        write!(shown, "\\u{:04x}", u32::from(letter)).unwrap_or_default();
    })
}

fn with_escapes(text: &str, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        match steers(letter) {
            true => escape(&mut shown, letter),
            false => shown.push(letter),
        }
    }
    Cow::Owned(shown)
}

/// Control characters, line and paragraph ends, and what changes the direction of writing. All of them have numbers of
/// four hexadecimal digits at most.
fn steers(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{200E}' | '\u{200F}' | '\u{61C}' | '\u{FEFF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out_and_nothing_else_changes() {
        assert_eq!(
            printable("/a\n\u{1b}[2J\u{9b}x\u{7f}\u{202e}"),
            "/a\\n\\u{1b}[2J\\u{9b}x\\u{7f}\\u{202e}"
        );
        for text in ["", "\"übel\" \\ 'x'", "10 µs", "日本語 🦀"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn a_line_of_json_keeps_its_value() {
        let all: String = (0..0x3000).filter_map(char::from_u32).collect();
        let value = serde_json::json!({ all.clone(): all });
        let line = value.to_string();
        let shown = printable_json(&line);
        assert!(!shown.contains(steers) && line.contains(steers));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        assert_eq!(printable_json("{\"a\":\"ü\"}"), "{\"a\":\"ü\"}");
    }
}
