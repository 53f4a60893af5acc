//! The port as bytes, both directions: what [`SocketPort`](crate::SocketPort) says and what
//! [`serve`](crate::serve) answers.
//!
//! A message is an 8-byte header (payload length as u32, version, kind, two zero bytes) and a payload of fixed-size
//! items, little-endian. The number of items follows from the length, so there is no count that could lie. Every kind
//! has a greatest length, checked before anything is allocated. There is exactly one encoding of each message, and
//! decoding what was encoded gives the message back: the fuzz target holds both against each other.

use std::borrow::Cow;

use crate::hash::{DomainKey, Sketch};
use crate::page::{Gfn, GuestId, PAGE_SIZE, Page, PoolGeneration, Slot};
use crate::port::{
    Answer, Invalid, Offer, PUBLISH_BATCH, Publication, REPORT_BATCH, Reconnected, Refusal, Report,
};

/// The version of everything in this file. Another one is refused: both ends come from one build.
pub const VERSION: u8 = 2;

/// Bytes of a header.
pub const HEADER: usize = 8;

/// What begins a connection, from the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Pages that the guest has.
    pub pages: u32,
    /// The session it had before, when it comes back.
    pub before: Option<(GuestId, PoolGeneration)>,
    /// References to that session's pool it still uses: as many slots follow in [`Request::Held`] messages.
    pub held: u32,
}

/// What the manager answers to [`Hello`], with the pool and the offers' pipe as file descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The guest's number.
    pub guest: GuestId,
    /// The pool's generation.
    pub generation: PoolGeneration,
    /// The domain's secret.
    pub key: DomainKey,
    /// Slots the pool may ever have.
    pub slot_limit: u32,
    /// Whether the references of the session before are still good.
    pub reconnected: Reconnected,
}

/// From the region to the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// Begins a connection.
    Hello(Hello),
    /// Part of the references announced by [`Hello`].
    Held(Cow<'a, [Slot]>),
    /// [`Port::report`](crate::port::Port::report).
    Report(Cow<'a, [Report]>),
    /// [`Port::publish`](crate::port::Port::publish): as many pages as reports.
    Publish(Cow<'a, [Report]>, &'a [Page]),
    /// [`Port::offers`](crate::port::Port::offers).
    Offers,
    /// [`Port::withdraw`](crate::port::Port::withdraw).
    Withdraw(Cow<'a, [Gfn]>),
    /// [`Port::release`](crate::port::Port::release).
    Release(PoolGeneration, Cow<'a, [Slot]>),
    /// [`Port::claim`](crate::port::Port::claim).
    Claim(PoolGeneration, Cow<'a, [Slot]>),
}

/// From the manager to the region: one for each [`Request`] but [`Request::Held`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<'a> {
    /// To [`Request::Hello`], after the last [`Request::Held`].
    Welcome(Welcome),
    /// To [`Request::Report`] and [`Request::Claim`].
    Answers(Cow<'a, [Answer]>),
    /// To [`Request::Publish`].
    Publications(Cow<'a, [Publication]>),
    /// To [`Request::Offers`].
    Offers(Cow<'a, [Offer]>),
    /// To [`Request::Withdraw`] and [`Request::Release`].
    Done,
    /// The slots belong to another pool: theirs, the session's.
    Stale(PoolGeneration, PoolGeneration),
    /// The call was refused.
    Invalid(Invalid),
    /// The manager's side failed with this errno.
    Failed(i32),
}

/// Bytes that are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
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
    Welcome = 129,
    Answers,
    Publications,
    OffersMade,
    Done,
    Stale,
    Invalid,
    Failed,
}

const REQUESTS: [Kind; 8] = [
    Kind::Hello,
    Kind::Held,
    Kind::Report,
    Kind::Publish,
    Kind::Offers,
    Kind::Withdraw,
    Kind::Release,
    Kind::Claim,
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
            Self::Hello => (20, 0, 0),
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
            Self::Failed => (4, 0, 0),
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

/// Appends a message; the closure appends the payload.
fn message(out: &mut Vec<u8>, kind: Kind, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0, 0, 0, 0, VERSION, kind as u8, 0, 0]);
    payload(out);
    let length = out.len() - start - HEADER;
    debug_assert!(kind.fits(length), "{kind:?} with {length} bytes");
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
}

fn put_slots(out: &mut Vec<u8>, generation: PoolGeneration, slots: &[Slot]) {
    out.extend(generation.get().to_le_bytes());
    put_words(out, slots.iter().map(|slot| slot.get()));
}

impl Request<'_> {
    /// Appends the message to `out`. The caller keeps to the batch limits of [`port`](crate::port).
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Hello(hello) => message(out, Kind::Hello, |out| {
                let (guest, generation) = hello.before.map_or((u32::MAX, 0), |(guest, generation)| {
                    (u32::from(guest.get()), generation.get())
                });
                put_words(out, [hello.pages, guest, hello.held]);
                out.extend(generation.to_le_bytes());
            }),
            Self::Held(slots) => message(out, Kind::Held, |out| {
                put_words(out, slots.iter().map(|slot| slot.get()));
            }),
            Self::Report(reports) => message(out, Kind::Report, |out| put_reports(out, reports)),
            Self::Publish(reports, bytes) => message(out, Kind::Publish, |out| {
                put_reports(out, reports);
                out.extend_from_slice(bytes.as_flattened());
            }),
            Self::Offers => message(out, Kind::Offers, |_| {}),
            Self::Withdraw(gfns) => message(out, Kind::Withdraw, |out| {
                put_words(out, gfns.iter().map(|gfn| gfn.get()));
            }),
            Self::Release(generation, slots) => message(out, Kind::Release, |out| {
                put_slots(out, *generation, slots);
            }),
            Self::Claim(generation, slots) => message(out, Kind::Claim, |out| {
                put_slots(out, *generation, slots);
            }),
        }
    }
}

impl<'a> Request<'a> {
    /// The request that `header` announced with `payload`, which has the length that it announced.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(header: Header, payload: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Fields::of(header, payload)?;
        Ok(match header.kind {
            Kind::Hello => {
                let [pages, guest, held] = [fields.word(), fields.word(), fields.word()];
                let generation = PoolGeneration::new(fields.long());
                let before = match (u16::try_from(guest), guest) {
                    (Ok(guest), _) => Some((GuestId::new(guest), generation)),
                    (_, u32::MAX) if generation.get() == 0 => None,
                    _ => return Err(header.value(guest)),
                };
                Self::Hello(Hello { pages, before, held })
            }
            Kind::Held => Self::Held(fields.slots()),
            Kind::Report => Self::Report(fields.reports(usize::MAX)),
            Kind::Publish => {
                let count = payload.len() / (12 + PAGE_SIZE);
                let reports = fields.reports(count);
                Self::Publish(reports, fields.0.as_chunks().0)
            }
            Kind::Offers => Self::Offers,
            Kind::Withdraw => Self::Withdraw(fields.words().map(Gfn::new).collect()),
            Kind::Release => Self::Release(PoolGeneration::new(fields.long()), fields.slots()),
            Kind::Claim => Self::Claim(PoolGeneration::new(fields.long()), fields.slots()),
            other => return Err(header.value(other as u32)),
        })
    }
}

/// In the place of a slot: [`Answer::Noted`] and [`Publication::Noted`].
const NOTED: u32 = u32::MAX;

/// In the place of a slot: [`Answer::Publish`].
const PUBLISH: u32 = u32::MAX - 1;

/// In the place of a slot: the refusals, from this one downwards.
const REFUSED: u32 = u32::MAX - 2;

const REFUSALS: [Refusal; 3] = [Refusal::PoolFull, Refusal::SketchMismatch, Refusal::Collision];

/// No slot has a number from here on: a pool is whole extents.
const NO_SLOT: u32 = u32::MAX - 15;

impl Reply<'_> {
    /// Appends the message to `out`. The caller keeps to the batch limits of [`port`](crate::port).
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome(welcome) => message(out, Kind::Welcome, |out| put_welcome(out, welcome)),
            Self::Answers(answers) => message(out, Kind::Answers, |out| {
                put_words(
                    out,
                    answers.iter().map(|answer| match answer {
                        Answer::Noted => NOTED,
                        Answer::Publish => PUBLISH,
                        Answer::Shared(slot) => slot.get(),
                    }),
                );
            }),
            Self::Publications(results) => message(out, Kind::Publications, |out| {
                put_words(
                    out,
                    results.iter().map(|result| match result {
                        Publication::Noted => NOTED,
                        Publication::Granted(slot) => slot.get(),
                        Publication::Refused(refusal) => REFUSED - *refusal as u32,
                    }),
                );
            }),
            Self::Offers(offers) => message(out, Kind::OffersMade, |out| {
                put_words(
                    out,
                    offers
                        .iter()
                        .flat_map(|offer| [offer.gfn.get(), offer.slot.get()]),
                );
            }),
            Self::Done => message(out, Kind::Done, |_| {}),
            Self::Stale(slots, session) => message(out, Kind::Stale, |out| {
                out.extend(slots.get().to_le_bytes());
                out.extend(session.get().to_le_bytes());
            }),
            Self::Invalid(invalid) => message(out, Kind::Invalid, |out| {
                put_words(
                    out,
                    match *invalid {
                        Invalid::Batch { count, limit } => [0, count, limit],
                        Invalid::Gfn { gfn, pages } => [1, gfn.get(), pages],
                        Invalid::NotHeld(slot) => [2, slot.get(), 0],
                        Invalid::NotAttached(guest) => [3, u32::from(guest.get()), 0],
                    },
                );
            }),
            Self::Failed(errno) => message(out, Kind::Failed, |out| out.extend(errno.to_le_bytes())),
        }
    }
}

impl Reply<'static> {
    /// The reply that `header` announced with `payload`, which has the length that it announced.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(header: Header, payload: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::of(header, payload)?;
        Ok(match header.kind {
            Kind::Welcome => Self::Welcome(get_welcome(header, &mut fields)?),
            Kind::Answers => {
                let answer = |word| match word {
                    NOTED => Ok(Answer::Noted),
                    PUBLISH => Ok(Answer::Publish),
                    NO_SLOT.. => Err(header.value(word)),
                    slot => Ok(Answer::Shared(Slot::new(slot))),
                };
                Self::Answers(fields.words().map(answer).collect::<Result<_, _>>()?)
            }
            Kind::Publications => {
                let result = |word| match word {
                    NOTED => Ok(Publication::Noted),
                    NO_SLOT.. => REFUSALS
                        .get(REFUSED.wrapping_sub(word) as usize)
                        .map(|refusal| Publication::Refused(*refusal))
                        .ok_or(header.value(word)),
                    slot => Ok(Publication::Granted(Slot::new(slot))),
                };
                Self::Publications(fields.words().map(result).collect::<Result<_, _>>()?)
            }
            Kind::OffersMade => {
                let (pairs, _) = payload.as_chunks::<8>();
                let offer = |pair: &[u8; 8]| {
                    let [gfn, slot] = [word(&pair[..4]), word(&pair[4..])];
                    let (gfn, slot) = (Gfn::new(gfn), Slot::new(slot));
                    Offer { gfn, slot }
                };
                Self::Offers(pairs.iter().map(offer).collect())
            }
            Kind::Done => Self::Done,
            Kind::Stale => {
                let [slots, session] = [fields.long(), fields.long()];
                Self::Stale(PoolGeneration::new(slots), PoolGeneration::new(session))
            }
            Kind::Invalid => Self::Invalid(get_invalid(header, &mut fields)?),
            Kind::Failed => Self::Failed(fields.word() as i32),
            other => return Err(header.value(other as u32)),
        })
    }
}

fn put_words(out: &mut Vec<u8>, words: impl IntoIterator<Item = u32>) {
    out.extend(words.into_iter().flat_map(u32::to_le_bytes));
}

fn put_reports(out: &mut Vec<u8>, reports: &[Report]) {
    out.reserve(reports.len() * 12);
    for report in reports {
        out.extend_from_slice(&report.gfn.get().to_le_bytes());
        out.extend_from_slice(&report.sketch.get().to_le_bytes());
    }
}

fn put_welcome(out: &mut Vec<u8>, welcome: &Welcome) {
    let pool = match welcome.reconnected {
        Reconnected::FreshPool => 0,
        Reconnected::SamePool => 1,
    };
    out.extend(welcome.guest.get().to_le_bytes());
    out.extend(u16::to_le_bytes(pool));
    out.extend(welcome.slot_limit.to_le_bytes());
    out.extend(welcome.generation.get().to_le_bytes());
    out.extend(welcome.key.reveal());
}

fn get_welcome(header: Header, fields: &mut Fields<'_>) -> Result<Welcome, WireError> {
    let first = fields.word();
    let slot_limit = fields.word();
    let generation = PoolGeneration::new(fields.long());
    let reconnected = match first >> 16 {
        0 => Reconnected::FreshPool,
        1 => Reconnected::SamePool,
        other => return Err(header.value(other)),
    };
    if slot_limit > NO_SLOT {
        return Err(header.value(slot_limit));
    }
    let key = DomainKey::from_bytes(*fields.take());
    let guest = GuestId::new(first as u16);
    Ok(Welcome {
        guest,
        generation,
        key,
        slot_limit,
        reconnected,
    })
}

fn get_invalid(header: Header, fields: &mut Fields<'_>) -> Result<Invalid, WireError> {
    let [code, first, second] = [fields.word(), fields.word(), fields.word()];
    Ok(match (code, second) {
        (0, limit) => Invalid::Batch { count: first, limit },
        (1, pages) => Invalid::Gfn {
            gfn: Gfn::new(first),
            pages,
        },
        (2, 0) => Invalid::NotHeld(Slot::new(first)),
        (3, 0) => {
            let guest = u16::try_from(first).map_err(|_| header.value(first))?;
            Invalid::NotAttached(GuestId::new(guest))
        }
        _ => return Err(header.value(code)),
    })
}

fn word(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u32::from(*byte))
}

/// A payload whose length was checked against its kind: the fields below are all there.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn of(header: Header, payload: &'a [u8]) -> Result<Self, WireError> {
        if payload.len() == header.length {
            return Ok(Self(payload));
        }
        Err(WireError::Length {
            kind: header.kind as u8,
            length: payload.len(),
        })
    }

    fn take<const N: usize>(&mut self) -> &'a [u8; N] {
        let (head, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        head
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(*self.take())
    }

    fn long(&mut self) -> u64 {
        u64::from_le_bytes(*self.take())
    }

    fn words(&self) -> impl Iterator<Item = u32> + 'a {
        self.0
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn slots(&self) -> Cow<'static, [Slot]> {
        self.words().map(Slot::new).collect()
    }

    /// Up to `count` reports, off the front.
    fn reports(&mut self, count: usize) -> Cow<'static, [Report]> {
        let (items, _) = self.0.as_chunks::<12>();
        let items = &items[..items.len().min(count)];
        self.0 = &self.0[items.len() * 12..];
        let report = |item: &[u8; 12]| {
            let [a, b, c, d, sketch @ ..] = *item;
            Report {
                gfn: Gfn::new(u32::from_le_bytes([a, b, c, d])),
                sketch: Sketch::new(u64::from_le_bytes(sketch)),
            }
        };
        items.iter().map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(bytes: &[u8], direction: Direction) -> Result<(Header, &[u8]), WireError> {
        let (header, payload) = bytes.split_first_chunk().expect("a whole header");
        Ok((Header::parse(*header, direction)?, payload))
    }

    fn request_survives(request: &Request<'_>) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        let (header, payload) = split(&bytes, Direction::Request).unwrap();
        assert_eq!(&Request::decode(header, payload).unwrap(), request);
        assert!(split(&bytes, Direction::Reply).is_err());
    }

    fn reply_survives(reply: &Reply<'_>) {
        let mut bytes = Vec::new();
        reply.encode(&mut bytes);
        let (header, payload) = split(&bytes, Direction::Reply).unwrap();
        assert_eq!(&Reply::decode(header, payload).unwrap(), reply);
        assert!(split(&bytes, Direction::Request).is_err());
    }

    #[test]
    fn every_message_survives_the_way() {
        let slots: Vec<_> = (0..9).map(Slot::new).collect();
        let reports: Vec<_> = (0..3)
            .map(|i| Report {
                gfn: Gfn::new(i),
                sketch: Sketch::new(u64::MAX - u64::from(i)),
            })
            .collect();
        let before = Some((GuestId::new(u16::MAX), PoolGeneration::new(u64::MAX)));
        for before in [None, before] {
            request_survives(&Request::Hello(Hello {
                pages: 7,
                before,
                held: 8,
            }));
        }
        request_survives(&Request::Held(Cow::Borrowed(&slots)));
        request_survives(&Request::Report(Cow::Borrowed(&reports)));
        let pages: Vec<Page> = (0..3).map(|i| [i; PAGE_SIZE]).collect();
        request_survives(&Request::Publish(Cow::Borrowed(&reports), &pages));
        request_survives(&Request::Offers);
        request_survives(&Request::Withdraw(Cow::Owned(vec![Gfn::new(9)])));
        request_survives(&Request::Release(PoolGeneration::new(5), Cow::Borrowed(&slots)));
        request_survives(&Request::Claim(PoolGeneration::new(6), Cow::Borrowed(&slots)));
        for reconnected in [Reconnected::FreshPool, Reconnected::SamePool] {
            reply_survives(&Reply::Welcome(Welcome {
                guest: GuestId::new(3),
                generation: PoolGeneration::new(4),
                key: DomainKey::from_bytes(std::array::from_fn(|i| i as u8)),
                slot_limit: 1 << 20,
                reconnected,
            }));
        }
        let answers = [
            Answer::Noted,
            Answer::Publish,
            Answer::Shared(Slot::new(NO_SLOT - 1)),
        ];
        reply_survives(&Reply::Answers(Cow::Borrowed(&answers)));
        let mut results = vec![Publication::Noted, Publication::Granted(Slot::new(0))];
        results.extend(REFUSALS.map(Publication::Refused));
        reply_survives(&Reply::Publications(Cow::Owned(results)));
        let offer = Offer {
            gfn: Gfn::new(1),
            slot: Slot::new(2),
        };
        reply_survives(&Reply::Offers(Cow::Owned(vec![offer; 3])));
        reply_survives(&Reply::Done);
        reply_survives(&Reply::Stale(PoolGeneration::new(1), PoolGeneration::new(2)));
        reply_survives(&Reply::Failed(-12));
        for invalid in [
            Invalid::Batch { count: 1, limit: 2 },
            Invalid::Gfn {
                gfn: Gfn::new(1),
                pages: 2,
            },
            Invalid::NotHeld(Slot::new(3)),
            Invalid::NotAttached(GuestId::new(4)),
        ] {
            reply_survives(&Reply::Invalid(invalid));
        }
    }

    #[test]
    fn a_refusals_number_is_its_place_in_the_table() {
        for (number, refusal) in REFUSALS.into_iter().enumerate() {
            assert_eq!(refusal as usize, number);
        }
        assert!(REFUSED - (REFUSALS.len() as u32) >= NO_SLOT);
    }

    #[test]
    fn lengths_are_bounded_before_anything_is_read() {
        let header = |length: u32, version, kind, zero| {
            let [a, b, c, d] = length.to_le_bytes();
            Header::parse([a, b, c, d, version, kind, zero, 0], Direction::Request)
        };
        assert_eq!(header(0, VERSION, Kind::Offers as u8, 0).unwrap().length(), 0);
        assert_eq!(header(0, 9, Kind::Offers as u8, 0), Err(WireError::Version(9)));
        assert!(header(0, VERSION, Kind::Offers as u8, 1).is_err());
        assert!(
            header(0, VERSION, Kind::Done as u8, 0).is_err(),
            "the other direction"
        );
        assert!(header(0, VERSION, 99, 0).is_err());
        assert!(header(u32::MAX, VERSION, Kind::Report as u8, 0).is_err());
        assert!(header(13, VERSION, Kind::Report as u8, 0).is_err());
        assert!(header(12 * REPORT_BATCH as u32, VERSION, Kind::Report as u8, 0).is_ok());
        assert!(header(12 * REPORT_BATCH as u32 + 12, VERSION, Kind::Report as u8, 0).is_err());
        assert!(header(7, VERSION, Kind::Release as u8, 0).is_err());
    }

    proptest! {
        #[test]
        fn whatever_decodes_encodes_to_the_same_bytes(
            kind in prop::sample::select(REQUESTS.iter().chain(&REPLIES).map(|kind| *kind as u8).collect::<Vec<_>>()),
            payload in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 0..100),
        ) {
            let mut bytes = vec![payload.len() as u8, 0, 0, 0, VERSION, kind, 0, 0];
            bytes.extend(&payload);
            let mut again = Vec::new();
            if let Ok((header, payload)) = split(&bytes, Direction::Request) {
                if let Ok(request) = Request::decode(header, payload) {
                    request.encode(&mut again);
                    prop_assert_eq!(&again, &bytes);
                }
            } else if let Ok((header, payload)) = split(&bytes, Direction::Reply)
                && let Ok(reply) = Reply::decode(header, payload)
            {
                reply.encode(&mut again);
                prop_assert_eq!(&again, &bytes);
            }
        }
    }
}
