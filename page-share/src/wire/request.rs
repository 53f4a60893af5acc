//! What a region says.

use std::borrow::Cow;

use super::fields::{Fields, message, put_reports, put_slots, put_words};
use super::{Header, Kind, WireError};
use crate::page::{Gfn, PAGE_SIZE, Page, PoolGeneration, Slot};
use crate::port::Report;

/// From the region to the manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// Begins a connection: pages that the guest has.
    Hello(u32),
    /// Part of the references that the guest really has, one entry for each; no reply. After a lost connection.
    Held(Cow<'a, [Slot]>),
    /// As many slots have been named in [`Held`](Self::Held) messages on this connection: these are all references to its
    /// pool that the guest has.
    Restate(u32),
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
            Self::Hello(pages) => message(out, Kind::Hello, |out| put_words(out, [*pages])),
            Self::Restate(count) => message(out, Kind::Restate, |out| put_words(out, [*count])),
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
            Kind::Hello => Self::Hello(fields.word()),
            Kind::Restate => Self::Restate(fields.word()),
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
