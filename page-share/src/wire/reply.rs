//! What the manager answers.

use std::borrow::Cow;

use super::fields::{Fields, message, put_words};
use super::{Header, Kind, WireError};
use crate::hash::DomainKey;
use crate::page::{Gfn, GuestId, PoolGeneration, Slot};
use crate::port::{Answer, Invalid, Offer, Publication, Refusal};

/// What the manager answers to [`Request::Hello`](super::Request::Hello), with the pool and the offers' pipe as file descriptors.
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
}

/// From the manager to the region: one for each [`Request`](super::Request) but [`Request::Held`](super::Request::Held).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<'a> {
    /// To [`Request::Hello`](super::Request::Hello).
    Welcome(Welcome),
    /// To [`Request::Report`](super::Request::Report) and [`Request::Claim`](super::Request::Claim).
    Answers(Cow<'a, [Answer]>),
    /// To [`Request::Publish`](super::Request::Publish).
    Publications(Cow<'a, [Publication]>),
    /// To [`Request::Offers`](super::Request::Offers).
    Offers(Cow<'a, [Offer]>),
    /// To [`Request::Withdraw`](super::Request::Withdraw), [`Request::Release`](super::Request::Release) and
    /// [`Request::Restate`](super::Request::Restate).
    Done,
    /// The slots belong to another pool: theirs, the session's.
    Stale(PoolGeneration, PoolGeneration),
    /// The call was refused.
    Invalid(Invalid),
    /// The manager's side failed with this errno.
    Failed(i32),
}

/// In the place of a slot: [`Answer::Noted`] and [`Publication::Noted`].
const NOTED: u32 = u32::MAX;

/// In the place of a slot: [`Answer::Publish`].
const PUBLISH: u32 = u32::MAX - 1;

/// In the place of a slot: the refusals, from this one downwards.
pub(super) const REFUSED: u32 = u32::MAX - 2;

pub(super) const REFUSALS: [Refusal; 3] = [Refusal::PoolFull, Refusal::SketchMismatch, Refusal::Collision];

/// No slot has a number from here on: a pool is whole extents.
pub(super) const NO_SLOT: u32 = u32::MAX - 15;

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

fn put_welcome(out: &mut Vec<u8>, welcome: &Welcome) {
    out.extend(u32::from(welcome.guest.get()).to_le_bytes());
    out.extend(welcome.slot_limit.to_le_bytes());
    out.extend(welcome.generation.get().to_le_bytes());
    out.extend(welcome.key.reveal());
}

fn get_welcome(header: Header, fields: &mut Fields<'_>) -> Result<Welcome, WireError> {
    let number = fields.word();
    let guest = u16::try_from(number).map_err(|_| header.value(number))?;
    let slot_limit = fields.word();
    let generation = PoolGeneration::new(fields.long());
    if slot_limit > NO_SLOT {
        return Err(header.value(slot_limit));
    }
    let key = DomainKey::from_bytes(*fields.take());
    Ok(Welcome {
        guest: GuestId::new(guest),
        generation,
        key,
        slot_limit,
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
        _ => return Err(header.value(code)),
    })
}

fn word(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .rev()
        .fold(0, |word, byte| word << 8 | u32::from(*byte))
}
