//! The text of a fleet file: what its values are read with, and where errors about them point.

use std::fmt::Display;
use std::path::Path;

use toml::{Spanned, Value};

use super::FleetFileError;

/// Characters of a key or a message that are shown.
const SHOWN: usize = 300;

/// The file that errors speak of.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Source<'_> {
    pub(super) fn read<T>(
        &self,
        key: &str,
        text: &Spanned<String>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, FleetFileError> {
        read(text.get_ref()).map_err(|what| self.wrong(text.span().start, key, what))
    }

    /// The same for what may be a number or a text.
    pub(super) fn read_value<T>(
        &self,
        key: &str,
        value: &Spanned<Value>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, FleetFileError> {
        let text = plain(value.get_ref()).ok_or_else(|| "write a text or a number".to_owned());
        text.and_then(|text| read(&text))
            .map_err(|what| self.wrong(value.span().start, key, what))
    }

    pub(super) fn wrong(&self, at: usize, key: &str, what: impl Display) -> FleetFileError {
        FleetFileError::Wrong {
            path: self.path.to_owned(),
            line: self.line(at),
            key: shortened(key.to_owned()),
            what: shortened(what.to_string()),
        }
    }

    /// What the TOML reader found wrong; the key is what stands in front of the place.
    pub(super) fn syntax(&self, error: &toml::de::Error) -> FleetFileError {
        let at = error.span().map_or(0, |span| span.start);
        let line = self.text.lines().nth(self.line(at) - 1).unwrap_or_default();
        let key = line.split('=').next().unwrap_or_default().trim();
        self.wrong(at, key, error.message().replace('\n', ", "))
    }

    fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().get(..at).unwrap_or(self.text.as_bytes());
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    }
}

/// What a terminal can take of a key or a message: the file decides how long it is.
fn shortened(text: String) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// A text, or a number as a text.
pub(super) fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        // Large ones in short form.
        Value::Float(number) => Some(format!("{number:?}").trim_end_matches(".0").to_owned()),
        _ => None,
    }
}
