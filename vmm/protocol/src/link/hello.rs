//! How a guest is introduced.

use serde::{Deserialize, Serialize};

use super::message::{GroupLimits, PageCounts, SwapRoom};
use super::version::{OLDEST, Range, VERSION};

/// Shares of a guest of which nothing else is said.
const USUAL_SHARES: u32 = 1000;

/// Who is asking to be managed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The newest version that the sender speaks: [`VERSION`].
    pub version: u32,
    /// The oldest version that it speaks; without it, it speaks no other. A manager of version 3 does not know this
    /// field and takes no hello that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<u32>,
    /// The guest's name, unique on the host.
    pub name: String,
    /// Configured size ("max"), bytes.
    pub size: u64,
    /// Guaranteed memory ("min"), bytes.
    pub min: u64,
    /// Shares for the whole guest.
    pub shares: u32,
    /// Whether and with whom pages are shared.
    pub sharing: Sharing,
    /// The group that it claims memory with; without one it claims for itself.
    #[serde(default)]
    pub group: Option<GroupLimits>,
    /// What it was started from: the path of a fleet file.
    #[serde(default)]
    pub fleet: Option<String>,
    /// Unix socket on which this VMM takes `status`, `stop` and the like, for people.
    #[serde(default)]
    pub control: Option<String>,
    /// Where its pages are, of a guest that ran under another manager before: it is there already, whatever was promised
    /// meanwhile. None of a guest that starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages: Option<PageCounts>,
    /// What its process can swap; none where it has no swap folder, or does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<SwapRoom>,
}

impl Hello {
    /// The guest `name` of `size` bytes, in the versions that this program speaks: it is promised nothing, has 1000 shares,
    /// and shares no page with other guests.
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self {
            version: VERSION,
            oldest: Some(OLDEST),
            name: name.into(),
            size,
            min: 0,
            shares: USUAL_SHARES,
            sharing: Sharing::Off,
            group: None,
            fleet: None,
            control: None,
            pages: None,
            swap: None,
        }
    }

    /// The same with `min` bytes guaranteed.
    #[must_use]
    pub fn with_min(self, min: u64) -> Self {
        Self { min, ..self }
    }

    /// The same with `shares` for the whole guest.
    #[must_use]
    pub fn with_shares(self, shares: u32) -> Self {
        Self { shares, ..self }
    }

    /// The same, sharing pages with the guests that name the same `domain`.
    #[must_use]
    pub fn in_domain(self, domain: impl Into<String>) -> Self {
        Self {
            sharing: Sharing::Domain(domain.into()),
            ..self
        }
    }

    /// The versions that the sender speaks.
    pub fn range(&self) -> Range {
        Range {
            version: self.version,
            oldest: self.oldest,
        }
    }

    /// The same hello for a manager that speaks no other version than `version`, from before versions were negotiated.
    #[must_use]
    pub fn in_version(&self, version: u32) -> Self {
        Self {
            version,
            oldest: None,
            pages: None,
            swap: None,
            ..self.clone()
        }
    }
}

/// A guest's sharing domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// Nothing is shared, zero pages excepted.
    Off,
    /// With the guests that name the same domain.
    Domain(String),
}
