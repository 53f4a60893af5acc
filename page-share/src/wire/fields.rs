//! Payloads: fixed-size fields, little-endian, one after the other.

use std::borrow::Cow;

use super::{HEADER, Header, Kind, VERSION, WireError};
use crate::hash::Sketch;
use crate::page::{Gfn, Page, PoolGeneration, Slot};
use crate::port::Report;

/// Appends a message; the closure appends the payload.
pub(super) fn message(out: &mut Vec<u8>, kind: Kind, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0, 0, 0, 0, VERSION, kind as u8, 0, 0]);
    payload(out);
    let length = out.len() - start - HEADER;
    debug_assert!(kind.fits(length), "{kind:?} with {length} bytes");
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
}

pub(super) fn put_slots(out: &mut Vec<u8>, generation: PoolGeneration, slots: &[Slot]) {
    out.extend(generation.get().to_le_bytes());
    put_words(out, slots.iter().map(|slot| slot.get()));
}

pub(super) fn put_words(out: &mut Vec<u8>, words: impl IntoIterator<Item = u32>) {
    out.extend(words.into_iter().flat_map(u32::to_le_bytes));
}

pub(super) fn put_reports(out: &mut Vec<u8>, reports: &[Report]) {
    out.reserve(reports.len() * 12);
    for report in reports {
        out.extend_from_slice(&report.gfn.get().to_le_bytes());
        out.extend_from_slice(&report.sketch.get().to_le_bytes());
    }
}

/// A payload whose length was checked against its kind: the fields below are all there.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn of(header: Header, payload: &'a [u8]) -> Result<Self, WireError> {
        if payload.len() == header.length {
            return Ok(Self(payload));
        }
        Err(WireError::Length {
            kind: header.kind as u8,
            length: payload.len(),
        })
    }

    pub(super) fn take<const N: usize>(&mut self) -> &'a [u8; N] {
        let (head, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        head
    }

    pub(super) fn word(&mut self) -> u32 {
        u32::from_le_bytes(*self.take())
    }

    pub(super) fn long(&mut self) -> u64 {
        u64::from_le_bytes(*self.take())
    }

    pub(super) fn words(&self) -> impl Iterator<Item = u32> + 'a {
        self.0
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
    }

    pub(super) fn slots(&self) -> Cow<'static, [Slot]> {
        self.words().map(Slot::new).collect()
    }

    /// All that is left, in pages.
    pub(super) fn pages(&self) -> &'a [Page] {
        self.0.as_chunks().0
    }

    /// Up to `count` reports, off the front.
    pub(super) fn reports(&mut self, count: usize) -> Cow<'static, [Report]> {
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
