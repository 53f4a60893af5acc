//! The port as bytes, both directions: what [`SocketPort`](crate::SocketPort) says and what
//! [`serve`](crate::serve) answers.
//!
//! A message is an 8-byte header (payload length as u32, version, kind, two zero bytes) and a payload of fixed-size
//! items, little-endian. The number of items follows from the length, so there is no count that could lie. Every kind
//! has a greatest length, checked before anything is allocated. There is exactly one encoding of each message, and
//! decoding what was encoded gives the message back: the fuzz target holds both against each other.

mod fields;
mod reply;
mod request;
#[cfg(test)]
mod tests;

use crate::page::PAGE_SIZE;
use crate::port::{PUBLISH_BATCH, REPORT_BATCH};

pub use reply::{Reply, Welcome};
pub use request::Request;

/// The version of everything in this file. Another one is refused: both ends come from one build.
pub const VERSION: u8 = 3;

/// Bytes of a header.
pub const HEADER: usize = 8;

/// Bytes that are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Another version.
    #[error("the peer speaks version {0} of the sharing protocol, this is version {VERSION}")]
    Version(u8),
    /// A kind that this direction does not have, or a header with bits that mean nothing.
    #[error("header {0:02x?} is not one of this direction")]
    Header([u8; HEADER]),
    /// A payload that the kind cannot have.
    #[error("a message of kind {kind} with {length} bytes")]
    Length {
        /// The kind.
        kind: u8,
        /// Bytes of payload.
        length: usize,
    },
    /// A field with a value that means nothing.
    #[error("a message of kind {kind} with the meaningless value {value}")]
    Value {
        /// The kind.
        kind: u8,
        /// The value.
        value: u32,
    },
}

/// A parsed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    kind: Kind,
    length: usize,
}

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the region.
    Request,
    /// From the manager.
    Reply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Hello = 1,
    Held,
    Report,
    Publish,
    Offers,
    Withdraw,
    Release,
    Claim,
    Restate,
    Welcome = 129,
    Answers,
    Publications,
    OffersMade,
    Done,
    Stale,
    Invalid,
    Failed,
}

const REQUESTS: [Kind; 9] = [
    Kind::Hello,
    Kind::Held,
    Kind::Report,
    Kind::Publish,
    Kind::Offers,
    Kind::Withdraw,
    Kind::Release,
    Kind::Claim,
    Kind::Restate,
];

const REPLIES: [Kind; 8] = [
    Kind::Welcome,
    Kind::Answers,
    Kind::Publications,
    Kind::OffersMade,
    Kind::Done,
    Kind::Stale,
    Kind::Invalid,
    Kind::Failed,
];

impl Kind {
    /// Bytes before the items, bytes of an item, most items.
    const fn shape(self) -> (usize, usize, usize) {
        match self {
            Self::Hello | Self::Restate | Self::Failed => (4, 0, 0),
            Self::Held | Self::Withdraw | Self::Answers => (0, 4, REPORT_BATCH),
            Self::Report => (0, 12, REPORT_BATCH),
            Self::Publish => (0, 12 + PAGE_SIZE, PUBLISH_BATCH),
            Self::Offers | Self::Done => (0, 0, 0),
            Self::Release | Self::Claim => (8, 4, REPORT_BATCH),
            Self::Welcome => (48, 0, 0),
            Self::Publications => (0, 4, PUBLISH_BATCH),
            Self::OffersMade => (0, 8, REPORT_BATCH),
            Self::Stale => (16, 0, 0),
            Self::Invalid => (12, 0, 0),
        }
    }

    fn fits(self, length: usize) -> bool {
        let (fixed, item, most) = self.shape();
        let Some(items) = length.checked_sub(fixed) else {
            return false;
        };
        if item == 0 {
            items == 0
        } else {
            items % item == 0 && items / item <= most
        }
    }
}

impl Header {
    /// Parses a header of `direction`.
    ///
    /// # Errors
    /// [`WireError`], before a single byte of payload has been read.
    pub fn parse(bytes: [u8; HEADER], direction: Direction) -> Result<Self, WireError> {
        let [a, b, c, d, version, kind, zero @ ..] = bytes;
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        let kinds: &[Kind] = match direction {
            Direction::Request => &REQUESTS,
            Direction::Reply => &REPLIES,
        };
        let known = kinds.iter().find(|known| **known as u8 == kind && zero == [0; 2]);
        let known = *known.ok_or(WireError::Header(bytes))?;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if !known.fits(length) {
            return Err(WireError::Length { kind, length });
        }
        Ok(Self { kind: known, length })
    }

    /// Bytes of payload that follow.
    pub fn length(&self) -> usize {
        self.length
    }

    fn value(self, value: u32) -> WireError {
        WireError::Value {
            kind: self.kind as u8,
            value,
        }
    }
}
