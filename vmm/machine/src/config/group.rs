//! `key=value,key=on|off`: how options with several parts are written.

use std::str::FromStr;
use std::time::Duration;

use super::values;

/// What is wrong with an option.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum OptionError {
    /// A key that the option does not have.
    #[error("unknown key {key:?}{hint}; the keys are {known}", hint = similar(key, known))]
    UnknownKey { key: String, known: String },
    /// A key without value, or a value without key.
    #[error("{0:?} is not a key=value pair; the keys are {1}")]
    NotAPair(String, String),
    /// A key given twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A key that must be given.
    #[error("{key}= is missing; write {example}")]
    Missing {
        key: &'static str,
        example: &'static str,
    },
    /// A value that does not fit its key.
    #[error("{key}={value}: {what}")]
    Value {
        key: &'static str,
        value: String,
        what: String,
    },
}

fn similar(key: &str, known: &str) -> String {
    let shared = |a: &str, b: &str| a.chars().zip(b.chars()).take_while(|(x, y)| x == y).count();
    let best = known.split(", ").max_by_key(|k| shared(k, key));
    match best {
        Some(k) if shared(k, key) >= 2 => format!(" (did you mean {k}?)"),
        _ => String::new(),
    }
}

/// The pairs of one option, taken out one by one; [`finish`](Group::finish) refuses what is left.
#[derive(Debug)]
pub(super) struct Group {
    pairs: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Group {
    /// Splits `text`. A first part without `=` is the value of the key `first`, for brevity (`--memory 512M`).
    pub(super) fn parse(text: &str, first: &'static str, keys: &[&'static str]) -> Result<Self, OptionError> {
        let known: Vec<_> = std::iter::once(first).chain(keys.iter().copied()).collect();
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (n, part) in text.split(',').enumerate() {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key.trim(), value),
                None if n == 0 && !part.is_empty() => (first, part),
                None => return Err(OptionError::NotAPair(part.to_owned(), known.join(", "))),
            };
            if !known.contains(&key) {
                let (key, known) = (key.to_owned(), known.join(", "));
                return Err(OptionError::UnknownKey { key, known });
            }
            if pairs.iter().any(|(k, _)| k == key) {
                return Err(OptionError::Twice(key.to_owned()));
            }
            pairs.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self { pairs, known })
    }

    fn take(&mut self, key: &'static str) -> Option<String> {
        debug_assert!(self.known.contains(&key), "{key} is not declared");
        let at = self.pairs.iter().position(|(k, _)| k == key)?;
        Some(self.pairs.remove(at).1)
    }

    /// The value of `key` read with `read`, if it is given.
    pub(super) fn with<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, OptionError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match read(&value) {
            Ok(read) => Ok(Some(read)),
            Err(what) => Err(OptionError::Value { key, value, what }),
        }
    }

    pub(super) fn bytes(&mut self, key: &'static str) -> Result<Option<u64>, OptionError> {
        self.with(key, values::bytes)
    }

    pub(super) fn duration(&mut self, key: &'static str) -> Result<Option<Duration>, OptionError> {
        self.with(key, values::duration)
    }

    pub(super) fn switch(&mut self, key: &'static str) -> Result<bool, OptionError> {
        self.switch_or(key, false)
    }

    /// A switch that is in position `usual` unless it is given.
    pub(super) fn switch_or(&mut self, key: &'static str, usual: bool) -> Result<bool, OptionError> {
        Ok(self.with(key, values::switch)?.unwrap_or(usual))
    }

    pub(super) fn parsed<T: FromStr<Err = String>>(
        &mut self,
        key: &'static str,
    ) -> Result<Option<T>, OptionError> {
        self.with(key, str::parse)
    }

    /// A text that must be given and not be empty.
    pub(super) fn required(
        &mut self,
        key: &'static str,
        example: &'static str,
    ) -> Result<String, OptionError> {
        self.take(key)
            .filter(|value| !value.is_empty())
            .ok_or(OptionError::Missing { key, example })
    }

    /// An error about `key` that only shows when the keys are seen together.
    pub(super) fn wrong(key: &'static str, value: impl ToString, what: impl ToString) -> OptionError {
        OptionError::Value {
            key,
            value: value.to_string(),
            what: what.to_string(),
        }
    }
}
