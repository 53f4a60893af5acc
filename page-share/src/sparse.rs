//! An array that pays for its occupied parts only: one value per page number, most of them absent.

/// Values per chunk.
const CHUNK: usize = 1024;

/// An array indexed by `u32` whose default values take no memory, in chunks of 1024.
#[derive(Debug, Default)]
pub(crate) struct Sparse<T> {
    chunks: Vec<Option<Box<SparseChunk<T>>>>,
}

#[derive(Debug)]
struct SparseChunk<T> {
    /// Values that are not the default: at zero the chunk is dropped.
    occupied: u16,
    values: [T; CHUNK],
}

impl<T: Copy + Default + PartialEq> Sparse<T> {
    pub(crate) fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    /// The value at `index`, the default where none was set.
    pub(crate) fn get(&self, index: u32) -> T {
        let (chunk, place) = split(index);
        match self.chunks.get(chunk) {
            Some(Some(chunk)) => chunk.values[place],
            _ => T::default(),
        }
    }

    /// Stores `value` at `index` and returns what was there.
    pub(crate) fn replace(&mut self, index: u32, value: T) -> T {
        let (number, place) = split(index);
        let absent = T::default();
        if self.chunks.len() <= number {
            if value == absent {
                return absent;
            }
            self.chunks.resize_with(number + 1, || None);
        }
        let entry = &mut self.chunks[number];
        if entry.is_none() {
            if value == absent {
                return absent;
            }
            *entry = Some(Box::new(SparseChunk {
                occupied: 0,
                values: [absent; CHUNK],
            }));
        }
        let Some(chunk) = entry else { return absent };
        let old = std::mem::replace(&mut chunk.values[place], value);
        chunk.occupied += u16::from(value != absent);
        chunk.occupied -= u16::from(old != absent);
        if chunk.occupied == 0 {
            *entry = None;
        }
        old
    }

    /// Every value that is not the default, by index.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, T)> + '_ {
        let chunks = self.chunks.iter().enumerate();
        chunks
            .filter_map(|(number, chunk)| Some((number, chunk.as_deref()?)))
            .flat_map(|(number, chunk)| {
                let values = chunk.values.iter().enumerate();
                values.map(move |(place, &value)| ((number * CHUNK + place) as u32, value))
            })
            .filter(|&(_, value)| value != T::default())
    }

    /// Bytes of memory in use.
    pub(crate) fn bytes(&self) -> usize {
        let filled = self.chunks.iter().flatten().count();
        filled * size_of::<SparseChunk<T>>() + self.chunks.capacity() * size_of::<usize>()
    }
}

fn split(index: u32) -> (usize, usize) {
    (index as usize / CHUNK, index as usize % CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_map(writes in prop::collection::vec((0u32..5000, 0u8..3), 0..400)) {
            let mut sparse = Sparse::new();
            let mut map = BTreeMap::new();
            for (index, value) in writes {
                let old = if value == 0 { map.remove(&index) } else { map.insert(index, value) };
                prop_assert_eq!(sparse.replace(index, value), old.unwrap_or(0));
                prop_assert_eq!(sparse.get(index), value);
            }
            prop_assert!(sparse.iter().eq(map.into_iter()));
        }
    }

    #[test]
    fn memory_goes_back_when_the_last_value_goes() {
        let mut sparse = Sparse::new();
        sparse.replace(1 << 20, 7u32);
        let full = sparse.bytes();
        sparse.replace(1 << 20, 0);
        assert!(sparse.bytes() + CHUNK * 4 <= full);
    }
}
