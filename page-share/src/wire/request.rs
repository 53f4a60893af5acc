//! What a region says.

use std::borrow::Cow;

use super::fields::{Fields, message, put_reports, put_slots, put_words};
use super::{Header, Kind, WireError};
use crate::page::{Gfn, GuestId, PAGE_SIZE, Page, PoolGeneration, Slot};
use crate::port::Report;

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
                Self::Publish(reports, fields.pages())
            }
            Kind::Offers => Self::Offers,
            Kind::Withdraw => Self::Withdraw(fields.words().map(Gfn::new).collect()),
            Kind::Release => Self::Release(PoolGeneration::new(fields.long()), fields.slots()),
            Kind::Claim => Self::Claim(PoolGeneration::new(fields.long()), fields.slots()),
            other => return Err(header.value(other as u32)),
        })
    }
}
