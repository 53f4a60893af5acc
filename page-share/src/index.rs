//! The content index: which page has a content, 12 bytes an entry.
//!
//! An entry is a *hint* (one guest's page had this content when it was reported) or *shared* (the pool has it). The
//! table is 1024 open-addressing segments, each growing by a quarter when 70 % full: between 17 and 22 bytes per
//! entry at all times, and growing one segment moves a thousandth of the entries, so no call is ever slow.
//!
//! An entry keeps 46 of the sketch's 64 bits. Two contents that agree in those look alike to the index: with 2^28
//! entries that happens to one lookup in 2^18, and costs a comparison that fails. Nothing is believed because the
//! index says so.

use crate::hash::Sketch;
use crate::page::{Gfn, GuestId, Slot};

/// Segments, chosen by the sketch's top bits.
const SEGMENTS: usize = 1 << SEGMENT_BITS;
const SEGMENT_BITS: u32 = 10;

/// Bits of the sketch that choose the place inside a segment.
const PLACE_BITS: u32 = 32 - SEGMENT_BITS;

/// Fewest places in a segment that has entries.
const SMALLEST: usize = 8;

/// Places from one cache line to the next: searches often go on there.
const NEXT_LINE: usize = 64 / size_of::<Entry>();

/// Who has a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// This page of this guest, when it was reported.
    Hint(GuestId, Gfn),
    /// The pool.
    Shared(Slot),
}

/// The part of a sketch that finds its entry again: never zero, so zero can mean "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Trace(u32);

impl Trace {
    /// The trace of `sketch`.
    pub(crate) fn of(sketch: Sketch) -> Self {
        Self(((sketch.get() >> 32) as u32).max(1))
    }

    /// The trace stored as `bits`, or `None` for zero.
    pub(crate) fn from_bits(bits: u32) -> Option<Self> {
        (bits != 0).then_some(Self(bits))
    }

    /// The bits to store; not zero.
    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    fn segment(self) -> usize {
        (self.0 >> PLACE_BITS) as usize
    }

    /// Where in a segment of `capacity` places the search begins.
    fn home(self, capacity: usize) -> usize {
        let fraction = u64::from(self.0 & ((1 << PLACE_BITS) - 1));
        ((fraction * capacity as u64) >> PLACE_BITS) as usize
    }
}

/// All that the index keeps of a sketch: contents that agree in it look alike here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Likeness(Trace, u32);

impl Likeness {
    /// What is kept of `sketch`.
    pub(crate) fn of(sketch: Sketch) -> Self {
        Self(Trace::of(sketch), sketch.get() as u32 & EXTRA)
    }
}

/// One entry: the trace (zero where empty), then 14 more sketch bits, the kind and the guest, then gfn or slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry([u32; 3]);

/// Set in an entry's second word when it is a hint.
const HINT: u32 = 1 << 16;

/// The sketch bits of an entry's second word.
const EXTRA: u32 = !0 << 18;

impl Entry {
    const EMPTY: Self = Self([0; 3]);

    fn new(sketch: Sketch, holder: Holder) -> Self {
        let Likeness(trace, extra) = Likeness::of(sketch);
        let (kind, place) = match holder {
            Holder::Hint(guest, gfn) => (HINT | u32::from(guest.get()), gfn.get()),
            Holder::Shared(slot) => (0, slot.get()),
        };
        Self([trace.bits(), extra | kind, place])
    }

    fn trace(self) -> Option<Trace> {
        Trace::from_bits(self.0[0])
    }

    fn holder(self) -> Holder {
        let [_, kind, place] = self.0;
        if kind & HINT == 0 {
            Holder::Shared(Slot::new(place))
        } else {
            Holder::Hint(GuestId::new(kind as u16), Gfn::new(place))
        }
    }

    fn names(self, sketch: Sketch) -> bool {
        let Likeness(trace, extra) = Likeness::of(sketch);
        self.0[0] == trace.bits() && self.0[1] & EXTRA == extra
    }
}

/// Contents by sketch.
#[derive(Debug)]
pub(crate) struct Index {
    segments: Box<[Segment]>,
    entries: usize,
}

impl Index {
    pub(crate) fn new() -> Self {
        let segments = (0..SEGMENTS).map(|_| Segment::default()).collect();
        Self { segments, entries: 0 }
    }

    /// Contents known.
    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// Bytes of memory in use.
    pub(crate) fn bytes(&self) -> usize {
        let places: usize = self.segments.iter().map(|segment| segment.places.len()).sum();
        places * size_of::<Entry>() + SEGMENTS * size_of::<Segment>()
    }

    /// Who has the content of `sketch`.
    pub(crate) fn find(&self, sketch: Sketch) -> Option<Holder> {
        let trace = Trace::of(sketch);
        let segment = &self.segments[trace.segment()];
        let place = segment.find(trace, |entry| entry.names(sketch))?;
        Some(segment.places[place].holder())
    }

    /// Reads the places where searches for `sketches` begin, side by side: one after the other, each search would wait
    /// for memory alone.
    pub(crate) fn warm(&self, sketches: impl Iterator<Item = Sketch>) {
        let first = sketches.map(|sketch| {
            let trace = Trace::of(sketch);
            let places = &self.segments[trace.segment()].places;
            let home = trace.home(places.len());
            let bits = |place: usize| places.get(place).map_or(0, |entry| entry.0[0]);
            bits(home) ^ bits(home + NEXT_LINE)
        });
        std::hint::black_box(first.fold(0, |all, bits| all ^ bits));
    }

    /// Makes `holder` the one who has the content of `sketch`, in place of whoever had it.
    pub(crate) fn set(&mut self, sketch: Sketch, holder: Holder) {
        let trace = Trace::of(sketch);
        let segment = &mut self.segments[trace.segment()];
        let entry = Entry::new(sketch, holder);
        match segment.find(trace, |entry| entry.names(sketch)) {
            Some(place) => segment.places[place] = entry,
            None => {
                segment.insert(entry);
                self.entries += 1;
            }
        }
    }

    /// Forgets the content of `sketch` if `holder` has it. Returns whether that was so.
    pub(crate) fn remove(&mut self, sketch: Sketch, holder: Holder) -> bool {
        self.remove_where(Trace::of(sketch), |entry| {
            entry.names(sketch) && entry.holder() == holder
        })
    }

    /// Forgets whichever content with this trace has `holder` as its hint. Returns whether there was one.
    pub(crate) fn remove_traced(&mut self, trace: Trace, holder: Holder) -> bool {
        self.remove_where(trace, |entry| entry.holder() == holder)
    }

    /// Whether a content with this trace has `holder`.
    pub(crate) fn has_traced(&self, trace: Trace, holder: Holder) -> bool {
        let found = |entry: Entry| entry.trace() == Some(trace) && entry.holder() == holder;
        self.segments[trace.segment()].find(trace, found).is_some()
    }

    fn remove_where(&mut self, trace: Trace, wanted: impl Fn(Entry) -> bool) -> bool {
        let segment = &mut self.segments[trace.segment()];
        let wanted = |entry: Entry| entry.trace() == Some(trace) && wanted(entry);
        let Some(place) = segment.find(trace, wanted) else {
            return false;
        };
        segment.remove(place);
        self.entries -= 1;
        true
    }
}

/// A table with linear probing and no tombstones.
#[derive(Debug, Default)]
struct Segment {
    places: Vec<Entry>,
    entries: usize,
}

impl Segment {
    fn find(&self, trace: Trace, wanted: impl Fn(Entry) -> bool) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mut place = trace.home(self.places.len());
        // Ends: the table is never more than 70 % full. Fuller, a search for what is not there would be long.
        while self.places[place] != Entry::EMPTY {
            if wanted(self.places[place]) {
                return Some(place);
            }
            place = self.after(place);
        }
        None
    }

    fn insert(&mut self, entry: Entry) {
        if (self.entries + 1) * 10 > self.places.len() * 7 {
            self.resize((self.places.len() * 5).div_ceil(4).max(SMALLEST));
        }
        self.put(entry);
        self.entries += 1;
    }

    /// Puts an entry that is absent at the first empty place from its home on.
    fn put(&mut self, entry: Entry) {
        let Some(trace) = entry.trace() else { return };
        let mut place = trace.home(self.places.len());
        while self.places[place] != Entry::EMPTY {
            place = self.after(place);
        }
        self.places[place] = entry;
    }

    /// Empties `hole` and moves later entries of its cluster up, so that searches still reach them.
    fn remove(&mut self, mut hole: usize) {
        self.entries -= 1;
        let mut place = hole;
        loop {
            place = self.after(place);
            let Some(trace) = self.places[place].trace() else {
                break;
            };
            // The entry may move up unless its home lies after the hole on the way to where it is.
            if self.distance(trace.home(self.places.len()), place) >= self.distance(hole, place) {
                self.places[hole] = self.places[place];
                hole = place;
            }
        }
        self.places[hole] = Entry::EMPTY;
        if self.entries * 5 < self.places.len() * 2 && self.places.len() > SMALLEST {
            self.resize((self.entries * 3 / 2).max(SMALLEST));
        }
    }

    fn resize(&mut self, capacity: usize) {
        let old = std::mem::replace(&mut self.places, vec![Entry::EMPTY; capacity]);
        for entry in old {
            if entry != Entry::EMPTY {
                self.put(entry);
            }
        }
    }

    fn after(&self, place: usize) -> usize {
        if place + 1 == self.places.len() {
            0
        } else {
            place + 1
        }
    }

    /// Steps from one place forward to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from {
            to - from
        } else {
            to + self.places.len() - from
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Sketches that crowd into few homes: the same segment, traces that repeat, ends of the segment's range.
    fn crowded() -> impl Strategy<Value = Sketch> {
        (
            prop_oneof![0u64..4, 0x3f_fffe..=0x3f_ffffu64, 0u64..0x40_0000],
            0u64..4,
        )
            .prop_map(|(trace, extra)| Sketch::new(trace << 32 | extra << 18))
    }

    fn holder() -> impl Strategy<Value = Holder> {
        prop_oneof![
            (0u16..3, 0u32..50).prop_map(|(guest, gfn)| Holder::Hint(GuestId::new(guest), Gfn::new(gfn))),
            (0u32..50).prop_map(|slot| Holder::Shared(Slot::new(slot))),
        ]
    }

    /// The trace zero is stored as one, so those two sketches are one to the index.
    fn name(sketch: Sketch) -> (Trace, u32) {
        (Trace::of(sketch), sketch.get() as u32 & EXTRA)
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(
            steps in prop::collection::vec((crowded(), holder(), 0u8..4), 0..600),
        ) {
            let mut index = Index::new();
            let mut map = HashMap::new();
            for (sketch, holder, action) in steps {
                if action == 0 {
                    let known = map.get(&name(sketch)) == Some(&holder);
                    prop_assert_eq!(index.remove(sketch, holder), known);
                    if known {
                        map.remove(&name(sketch));
                    }
                } else {
                    index.set(sketch, holder);
                    map.insert(name(sketch), holder);
                }
                prop_assert_eq!(index.find(sketch), map.get(&name(sketch)).copied());
                prop_assert_eq!(index.entries(), map.len());
            }
            for (&(trace, extra), &holder) in &map {
                let sketch = Sketch::new(u64::from(trace.bits()) << 32 | u64::from(extra));
                prop_assert_eq!(index.find(sketch), Some(holder));
            }
            for ((trace, _), holder) in map {
                prop_assert!(index.has_traced(trace, holder));
                prop_assert!(index.remove_traced(trace, holder));
            }
            prop_assert_eq!(index.entries(), 0);
        }
    }

    #[test]
    fn an_entry_costs_at_most_22_bytes_and_memory_shrinks_again() {
        let mut index = Index::new();
        let sketch = |i: u64| Sketch::new(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut worst = 0.0f64;
        for i in 0..1_000_000 {
            index.set(sketch(i), Holder::Shared(Slot::new(i as u32)));
            if i > 300_000 && i % 10_000 == 0 {
                worst = worst.max(index.bytes() as f64 / (i + 1) as f64);
            }
        }
        assert!(worst <= 22.0, "{worst} bytes an entry");
        assert_eq!(index.entries(), 1_000_000);
        for i in 0..1_000_000 {
            assert!(index.remove(sketch(i), Holder::Shared(Slot::new(i as u32))));
        }
        assert_eq!(index.entries(), 0);
        assert!(index.bytes() < 256 << 10);
    }
}
