//! Which version of the protocol two processes speak with each other.
//!
//! A guest's process says which versions it speaks, the manager answers with the newest that both know. So a new
//! manager keeps the guests that an old one admitted, and the other way round.
//!
//! # How the protocol changes
//! A new field gets a default, and is not written where it has that default: then it can be left out for a peer of an older
//! version. A peer of a newer version may say more than this side knows, which is skipped. A peer of the same version or
//! an older one may not: nothing sound says it. [`NEWER_FIELDS`] has which version brought which field.

use serde::Deserialize;

/// The newest version that this program speaks.
pub const VERSION: u32 = 5;

/// The oldest version that this program speaks.
pub const OLDEST: u32 = 3;

/// From this version on, a guest's process is told how long its guest may take to switch itself off.
pub const WITH_GRACE: u32 = 5;

/// From this version on, peers say which versions they speak.
pub(super) const FIRST_NEGOTIATED: u32 = 4;

/// From this version on, a guest's process says what it can still swap.
pub(super) const FIRST_WITH_SWAP: u32 = 5;

/// Fields that are not of the oldest version: the message, the field, and the first version that has it. What a welcome
/// says of versions is not among them: it is left out for a peer that does not know it.
pub const NEWER_FIELDS: [(&str, &str, u32); 5] = [
    ("hello", "oldest", FIRST_NEGOTIATED),
    ("hello", "pages", FIRST_NEGOTIATED),
    ("hello", "swap", FIRST_WITH_SWAP),
    ("report", "swap", FIRST_WITH_SWAP),
    ("stop", "grace_ms", WITH_GRACE),
];

/// The versions that a guest's process speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Range {
    /// The newest.
    pub version: u32,
    /// The oldest; none is no other than the newest.
    #[serde(default)]
    pub oldest: Option<u32>,
}

/// Two processes that have no version in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the guest's process speaks {theirs} of the protocol, the manager versions {OLDEST} to {VERSION}; \
     restart the older of the two in a newer version"
)]
pub struct VersionError {
    /// What the guest's process speaks.
    pub theirs: Range,
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.oldest.filter(|oldest| *oldest < self.version) {
            Some(oldest) => write!(f, "versions {oldest} to {}", self.version),
            None => write!(f, "version {}", self.version),
        }
    }
}

impl Range {
    /// The newest version that this program speaks too.
    ///
    /// # Errors
    /// When there is none.
    pub fn common(self) -> Result<u32, VersionError> {
        let oldest = self.oldest.unwrap_or(self.version).min(self.version);
        let common = self.version.min(VERSION);
        match common >= OLDEST.max(oldest) {
            true => Ok(common),
            false => Err(VersionError { theirs: self }),
        }
    }

    pub(super) fn reading(self) -> Result<Reading, VersionError> {
        self.common().map(|_| Reading::of(self.version))
    }
}

/// How a peer's words are read, by the newest version that it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    newest: u32,
}

impl Default for Reading {
    /// For a peer that has not said it.
    fn default() -> Self {
        Self::of(VERSION)
    }
}

impl Reading {
    /// For a peer whose newest version is `newest`.
    pub(super) fn of(newest: u32) -> Self {
        Self { newest }
    }

    /// Whether words that this program does not know are skipped: the peer is of a newer version. They are an error
    /// otherwise.
    pub(super) fn is_forgiving(self) -> bool {
        self.newest > VERSION
    }

    /// The newest version of which the peer's words may be.
    pub(super) fn spoken(self) -> u32 {
        self.newest.min(VERSION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_common_version_is_spoken() {
        let common = |version, oldest| Range { version, oldest }.common().ok();
        assert_eq!(common(3, None), Some(3));
        assert_eq!(common(VERSION, Some(OLDEST)), Some(VERSION));
        assert_eq!(common(VERSION + 5, Some(OLDEST)), Some(VERSION));
        assert_eq!(common(VERSION + 5, Some(VERSION)), Some(VERSION));
        assert_eq!(common(VERSION + 5, Some(VERSION + 1)), None);
        assert_eq!(common(VERSION + 1, None), None);
        assert_eq!(common(OLDEST - 1, Some(0)), None);
        // An oldest above the newest is nonsense, and means the newest alone.
        assert_eq!(common(3, Some(u32::MAX)), Some(3));
    }

    #[test]
    fn a_refusal_names_both_ranges() {
        let theirs = Range {
            version: 9,
            oldest: Some(7),
        };
        let text = theirs.common().unwrap_err().to_string();
        assert!(
            text.contains("versions 7 to 9") && text.contains("versions 3 to 5"),
            "{text}"
        );
    }
}
