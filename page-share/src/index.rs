//! The content index: which page has a content, 13 bytes an entry.
//!
//! An entry is a *hint* (one guest's page had this content when it was reported) or *shared* (the pool has it). The
//! table is 1024 open-addressing segments, each growing by a quarter when 70 % full: between 19 and 24 bytes per
//! entry at all times, and growing one segment moves a thousandth of the entries, so no call is ever slow.
//!
//! A guest's process chooses the sketches that it reports. Were they to choose the places too, it could aim all of its
//! pages at one place, and every search there would go past all of them, for each guest of the domain. So the index knows
//! a sketch by its [`Name`] only: a hash of it under a random key of the index's own, which no process but the manager's
//! has.
//!
//! All 64 bits of a name are compared: ten of them choose the segment, the entry has the other 54. Fewer would not
//! do. A page whose sketch agrees with a hint's is published, and a guest's process may report sketches that it made up,
//! as many as its guest has pages: with 46 bits, one that reports 10,000 sketches a second for 64 GiB would meet
//! another guest's page every seven minutes, and read it. With 64 bits that takes years for each page.

mod key;

use std::hash::BuildHasher;
use std::io;

use crate::hash::Sketch;
use crate::page::{Gfn, GuestId, Slot};

use key::Key;

/// Segments, chosen by the name's top bits.
const SEGMENTS: usize = 1 << SEGMENT_BITS;
const SEGMENT_BITS: u32 = 10;

/// Bits of the name that choose the place inside a segment.
const PLACE_BITS: u32 = 32 - SEGMENT_BITS;

/// Fewest places in a segment that has entries.
const SMALLEST: usize = 8;

/// Places from one cache line to the next: searches often go on there.
const NEXT_LINE: usize = 64 / ENTRY_BYTES;

/// Bytes of an entry.
const ENTRY_BYTES: usize = size_of::<Entry>();
const _: () = assert!(ENTRY_BYTES == 13);

/// Who has a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// This page of this guest, when it was reported.
    Hint(GuestId, Gfn),
    /// The pool.
    Shared(Slot),
}

/// What the index knows a sketch by. Two sketches with one name are as rare as two contents with one sketch, and end as
/// those do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name(u64);

/// The part of a name that leads to its entry: the upper half, with the lowest bit set so that zero can mean "none".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Trace(u32);

impl Trace {
    fn of(name: Name) -> Self {
        Self((name.0 >> 32) as u32 | 1)
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

    fn fraction(self) -> u32 {
        self.0 & FRACTION
    }
}

/// The bits of a trace that choose the place inside a segment.
const FRACTION: u32 = (1 << PLACE_BITS) - 1;

/// Where in a segment of `capacity` places a search begins.
fn home(fraction: u32, capacity: usize) -> usize {
    ((u64::from(fraction) * capacity as u64) >> PLACE_BITS) as usize
}

/// One entry. Eight bytes: 54 bits of the name, eight of the gfn's or slot's, the kind, and whether it is in use. Five
/// bytes: the guest and the rest of the gfn or slot. All zeros where empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry([u8; 13]);

/// The name's bits of an entry's first eight bytes: the segment implies the others.
const NAME: u64 = !0 >> SEGMENT_BITS;

/// Where the upper bits of the gfn or slot are.
const PLACE_SHIFT: u32 = 64 - SEGMENT_BITS;

/// Set when an entry is a hint.
const HINT: u64 = 1 << 62;

/// Set when an entry is in use.
const USED: u64 = 1 << 63;

impl Entry {
    const EMPTY: Self = Self([0; 13]);

    fn new(name: Name, holder: Holder) -> Self {
        let (kind, guest, place) = match holder {
            Holder::Hint(guest, gfn) => (HINT, guest.get(), gfn.get()),
            Holder::Shared(slot) => (0, 0, slot.get()),
        };
        let [low, middle, high, top] = place.to_le_bytes();
        let head = USED | kind | u64::from(top) << PLACE_SHIFT | name.0 & NAME;
        let [a, b, c, d, e, f, g, h] = head.to_le_bytes();
        let [i, j] = guest.to_le_bytes();
        Self([a, b, c, d, e, f, g, h, i, j, low, middle, high])
    }

    fn head(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    fn is_empty(self) -> bool {
        self.head() == 0
    }

    /// The part of its trace that the segment does not imply.
    fn fraction(self) -> u32 {
        (self.head() >> 32) as u32 & FRACTION | 1
    }

    fn holder(self) -> Holder {
        let [.., i, j, low, middle, high] = self.0;
        let head = self.head();
        let place = u32::from_le_bytes([low, middle, high, (head >> PLACE_SHIFT) as u8]);
        if head & HINT == 0 {
            Holder::Shared(Slot::new(place))
        } else {
            Holder::Hint(GuestId::new(u16::from_le_bytes([i, j])), Gfn::new(place))
        }
    }

    /// Whether this is the entry of `name`, in whose segment it is.
    fn is_of(self, name: Name) -> bool {
        self.head() & (USED | NAME) == USED | name.0 & NAME
    }
}

/// Contents by sketch.
#[derive(Debug)]
pub(crate) struct Index<K = Key> {
    key: K,
    segments: Box<[Segment]>,
    entries: usize,
}

impl Index {
    /// An empty index.
    ///
    /// # Errors
    /// When the kernel refuses random bytes.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self::with_key(Key::random()?))
    }
}

impl<K: BuildHasher> Index<K> {
    fn with_key(key: K) -> Self {
        let segments = (0..SEGMENTS).map(|_| Segment::default()).collect();
        Self {
            key,
            segments,
            entries: 0,
        }
    }

    fn name(&self, sketch: Sketch) -> Name {
        Name(self.key.hash_one(sketch))
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
        let name = self.name(sketch);
        let trace = Trace::of(name);
        let segment = &self.segments[trace.segment()];
        let place = segment.find(trace, |entry| entry.is_of(name))?;
        Some(segment.places[place].holder())
    }

    /// Reads the places where searches for `sketches` begin, side by side: one after the other, each search would wait
    /// for memory alone.
    pub(crate) fn warm(&self, sketches: impl Iterator<Item = Sketch>) {
        let first = sketches.map(|sketch| {
            let trace = Trace::of(self.name(sketch));
            let places = &self.segments[trace.segment()].places;
            let home = home(trace.fraction(), places.len());
            let bits = |place: usize| places.get(place).map_or(0, |entry| entry.head());
            bits(home) ^ bits(home + NEXT_LINE)
        });
        std::hint::black_box(first.fold(0, |all, bits| all ^ bits));
    }

    /// Makes `holder` the one that has the content of `sketch`, in place of an earlier holder.
    pub(crate) fn set(&mut self, sketch: Sketch, holder: Holder) {
        let name = self.name(sketch);
        let trace = Trace::of(name);
        let segment = &mut self.segments[trace.segment()];
        let entry = Entry::new(name, holder);
        match segment.find(trace, |entry| entry.is_of(name)) {
            Some(place) => segment.places[place] = entry,
            None => {
                segment.insert(entry);
                self.entries += 1;
            }
        }
    }

    /// Like [`set`](Self::set) for a content that is not known, without looking for it once more. Returns what leads to
    /// the entry without the sketch.
    pub(crate) fn add(&mut self, sketch: Sketch, holder: Holder) -> Trace {
        debug_assert_eq!(self.find(sketch), None);
        let name = self.name(sketch);
        let trace = Trace::of(name);
        self.segments[trace.segment()].insert(Entry::new(name, holder));
        self.entries += 1;
        trace
    }

    /// Forgets the content of `sketch` if `holder` has it. Returns whether that was so.
    pub(crate) fn remove(&mut self, sketch: Sketch, holder: Holder) -> bool {
        let name = self.name(sketch);
        self.remove_where(Trace::of(name), |entry| {
            entry.is_of(name) && entry.holder() == holder
        })
    }

    /// Forgets whichever content with this trace has `holder` as its hint. Returns whether there was one.
    pub(crate) fn remove_traced(&mut self, trace: Trace, holder: Holder) -> bool {
        let fraction = trace.fraction();
        self.remove_where(trace, |entry| {
            entry.fraction() == fraction && entry.holder() == holder
        })
    }

    /// Whether a content with this trace has `holder`.
    pub(crate) fn has_traced(&self, trace: Trace, holder: Holder) -> bool {
        let found = |entry: Entry| entry.fraction() == trace.fraction() && entry.holder() == holder;
        self.segments[trace.segment()].find(trace, found).is_some()
    }

    fn remove_where(&mut self, trace: Trace, wanted: impl Fn(Entry) -> bool) -> bool {
        let segment = &mut self.segments[trace.segment()];
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
        let mut place = home(trace.fraction(), self.places.len());
        // Ends: the table is never more than 70 % full. Fuller, a search for what is not there would be long.
        while !self.places[place].is_empty() {
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
        let mut place = home(entry.fraction(), self.places.len());
        while !self.places[place].is_empty() {
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
            let entry = self.places[place];
            if entry.is_empty() {
                break;
            }
            // The entry may move up unless its home lies after the hole on the way to where it is.
            let home = home(entry.fraction(), self.places.len());
            if self.distance(home, place) >= self.distance(hole, place) {
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
            if !entry.is_empty() {
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
    use crate::publish::AsIs;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::hash::BuildHasherDefault;

    /// An index that knows a sketch by its own bits.
    fn unkeyed() -> Index<BuildHasherDefault<AsIs>> {
        Index::with_key(BuildHasherDefault::default())
    }

    /// Sketches that crowd into few homes: two segments, traces that repeat, ends of the segment's range; many differ in
    /// one bit only.
    fn crowded() -> impl Strategy<Value = Sketch> {
        let trace = prop_oneof![0u64..4, 0x3f_fffe..=0x3f_ffffu64, 0u64..0x40_0000];
        let rest = prop_oneof![Just(0u64), (0..32u32).prop_map(|bit| 1 << bit)];
        (trace, 0..2u64, rest)
            .prop_map(|(trace, segment, rest)| Sketch::new(segment << 63 | trace << 32 | rest))
    }

    fn holder() -> impl Strategy<Value = Holder> {
        prop_oneof![
            (prop_oneof![0u16..3, Just(u16::MAX)], place())
                .prop_map(|(guest, gfn)| Holder::Hint(GuestId::new(guest), Gfn::new(gfn))),
            place().prop_map(|slot| Holder::Shared(Slot::new(slot))),
        ]
    }

    fn place() -> impl Strategy<Value = u32> {
        prop_oneof![
            0u32..50,
            (u32::MAX - 3)..=u32::MAX,
            (0..32u32).prop_map(|bit| 1 << bit)
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(
            steps in prop::collection::vec((crowded(), holder(), 0u8..4), 0..600),
        ) {
            let mut index = unkeyed();
            let mut map = HashMap::new();
            for (sketch, holder, action) in steps {
                if action == 0 {
                    let known = map.get(&sketch) == Some(&holder);
                    prop_assert_eq!(index.remove(sketch, holder), known);
                    if known {
                        map.remove(&sketch);
                    }
                } else {
                    index.set(sketch, holder);
                    map.insert(sketch, holder);
                }
                prop_assert_eq!(index.find(sketch), map.get(&sketch).copied());
                prop_assert_eq!(index.entries(), map.len());
            }
            for (&sketch, &holder) in &map {
                prop_assert_eq!(index.find(sketch), Some(holder));
            }
            for (sketch, holder) in map {
                let trace = Trace::of(index.name(sketch));
                prop_assert!(index.has_traced(trace, holder));
                prop_assert!(index.remove_traced(trace, holder));
            }
            prop_assert_eq!(index.entries(), 0);
        }
    }

    #[test]
    fn sketches_that_differ_in_any_one_bit_are_two() {
        let mut index = unkeyed();
        let sketch = 0x0123_4567_89ab_cdef;
        let held = Holder::Hint(GuestId::new(1), Gfn::new(2));
        index.set(Sketch::new(sketch), held);
        for bit in 0..64 {
            let other = Sketch::new(sketch ^ 1 << bit);
            assert_eq!(index.find(other), None, "bit {bit}");
            assert!(!index.remove(other, held), "bit {bit}");
        }
        assert_eq!(index.find(Sketch::new(sketch)), Some(held));
    }

    #[test]
    fn an_entry_costs_at_most_24_bytes_and_memory_shrinks_again() {
        let mut index = Index::new().unwrap();
        let sketch = |i: u64| Sketch::new(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut worst = 0.0f64;
        for i in 0..1_000_000 {
            index.set(sketch(i), Holder::Shared(Slot::new(i as u32)));
            if i > 300_000 && i % 10_000 == 0 {
                worst = worst.max(index.bytes() as f64 / (i + 1) as f64);
            }
        }
        assert!(worst <= 24.0, "{worst} bytes an entry");
        assert_eq!(index.entries(), 1_000_000);
        for i in 0..1_000_000 {
            assert!(index.remove(sketch(i), Holder::Shared(Slot::new(i as u32))));
        }
        assert_eq!(index.entries(), 0);
        assert!(index.bytes() < 256 << 10);
    }

    /// Places looked at to find each entry of `index` once.
    fn probes(index: &Index) -> usize {
        let of = |segment: &Segment| -> usize {
            let entries = segment
                .places
                .iter()
                .enumerate()
                .filter(|(_, entry)| !entry.is_empty());
            let home = |entry: Entry| home(entry.fraction(), segment.places.len());
            entries
                .map(|(place, &entry)| 1 + segment.distance(home(entry), place))
                .sum()
        };
        index.segments.iter().map(of).sum()
    }

    #[test]
    fn sketches_aimed_at_one_place_cost_what_others_cost() {
        let aims: [fn(u64) -> u64; 5] = [
            |page| 0xdead_beef << 32 | page,
            |page| page << 32,
            |page| page << (64 - 20),
            |page| page,
            |page| page.reverse_bits(),
        ];
        for pages in [1 << 12, 1 << 18] {
            for (number, aim) in aims.iter().enumerate() {
                let mut index = Index::new().unwrap();
                for page in 0..pages {
                    index.set(Sketch::new(aim(page)), Holder::Shared(Slot::new(page as u32)));
                }
                // Spread, a table that is 70 % full at most takes 2.2.
                let each = probes(&index) as f64 / pages as f64;
                assert!(
                    each < 2.5,
                    "{each} places for each of {pages} pages, aim {number}"
                );
            }
        }
    }
}
