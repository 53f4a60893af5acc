//! One line as a message, whatever of it is known here.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::version::{NEWER_FIELDS, Reading, VersionError};

/// What one side of the link says.
pub trait Message: Serialize + Sized {
    /// Reads the message whose type is `kind`; `None` where no message is called so.
    #[doc(hidden)]
    fn read(kind: &str, fields: &mut Fields<'_>) -> Option<Result<Self, serde_json::Error>>;

    /// What is done about unknown words from this message on.
    #[doc(hidden)]
    fn versions(kind: &str, fields: &Fields<'_>) -> Result<Reading, VersionError>;
}

/// The fields of a message that has come.
#[derive(Debug)]
pub struct Fields<'a> {
    line: &'a [u8],
    pub(super) reading: Reading,
    /// The first that no version known here has.
    unknown: Option<String>,
}

/// Why a line is not a message.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("it is not a JSON object")]
    NoObject,
    #[error("no message is of the type {0:?}")]
    Kind(String),
    #[error("the message {kind:?} has no field {field:?}")]
    Field { kind: String, field: String },
    #[error(
        "the message {kind:?} has the field {field:?} from version {since} on, and version {spoken} is spoken"
    )]
    Newer {
        kind: String,
        field: &'static str,
        since: u32,
        spoken: u32,
    },
    #[error(transparent)]
    Version(#[from] VersionError),
}

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
}

impl Fields<'_> {
    /// All of them, noting what is unknown.
    pub(super) fn read<T: DeserializeOwned>(&mut self) -> Result<T, serde_json::Error> {
        let mut json = serde_json::Deserializer::from_slice(self.line);
        let unknown = &mut self.unknown;
        let message = serde_ignored::deserialize(&mut json, |path| {
            let field = path.to_string();
            if unknown.is_none() && field != "type" {
                *unknown = Some(field);
            }
        })?;
        json.end()?;
        Ok(message)
    }

    /// One that a message of the type `kind` has only in a newer version than is spoken, and that version.
    fn newer(&self, kind: &str) -> Option<(&'static str, u32)> {
        let spoken = self.reading.spoken();
        let mut newer = NEWER_FIELDS
            .into_iter()
            .filter(|(of, _, since)| *of == kind && *since > spoken);
        let first = newer.next()?;
        let there: BTreeMap<String, IgnoredAny> = self.peek()?;
        let mut newer = std::iter::once(first).chain(newer);
        let (_, field, since) = newer.find(|(_, field, _)| there.contains_key(*field))?;
        Some((field, since))
    }

    /// Those that `T` has; `None` where they are not there.
    pub(super) fn peek<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(self.line).ok()
    }
}

/// The message in `line`, and how the next one is to be read. `None`: a message of a newer version.
pub(super) fn read<T: Message>(line: &[u8], reading: Reading) -> Result<(Option<T>, Reading), ReadError> {
    // A list would be taken for the fields in their order.
    if !line.trim_ascii_start().starts_with(b"{") {
        return Err(ReadError::NoObject);
    }
    let Kind { kind } = serde_json::from_slice(line)?;
    let mut fields = Fields {
        line,
        reading,
        unknown: None,
    };
    fields.reading = T::versions(&kind, &fields)?;
    let Some(message) = T::read(&kind, &mut fields) else {
        return match fields.reading.is_forgiving() {
            true => Ok((None, reading)),
            false => Err(ReadError::Kind(shortened(&kind))),
        };
    };
    let message = message?;
    if let Some((field, since)) = fields.newer(&kind) {
        return Err(ReadError::Newer {
            kind: kind.into_owned(),
            field,
            since,
            spoken: fields.reading.spoken(),
        });
    }
    match fields.unknown {
        Some(field) if !fields.reading.is_forgiving() => Err(ReadError::Field {
            kind: kind.into_owned(),
            field: shortened(&field),
        }),
        _ => Ok((Some(message), fields.reading)),
    }
}

/// What a peer made up, short enough for a log.
fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}
