//! The store against a map, damage and its limit.

use super::*;
use crate::hash::fill_random;
use proptest::prelude::*;
use std::collections::HashMap;

/// A page of which `random` bytes do not compress and the rest does.
fn page(seed: u8, random: usize) -> Page {
    let mut page = [seed; PAGE_SIZE];
    fill_random(&mut page[..random]).unwrap();
    page
}

#[test]
fn a_page_that_does_not_shrink_enough_is_refused() {
    let mut compressor = Compressor::new();
    assert!(compressor.compress(&page(0, PAGE_SIZE)).is_none());
    assert!(compressor.compress(&page(0, LARGEST)).is_none());
    let fits = compressor.compress(&page(0, LARGEST - 64)).unwrap();
    assert!(fits.bytes() <= COMPRESSED_LIMIT);
    assert!(compressor.compress(&page(7, 0)).unwrap().bytes() < 64);
}

#[test]
fn a_handle_that_means_nothing_is_an_error() {
    let (mut store, mut compressor) = (Store::new(1 << 20).unwrap(), Compressor::new());
    let handle = store.insert(compressor.compress(&page(1, 0)).unwrap()).unwrap();
    let mut out = [0; PAGE_SIZE];
    for bits in [
        0,
        1,
        handle.bits() ^ 1,
        handle.bits() ^ 1 << 10,
        handle.bits() ^ 1 << 26,
        handle.bits() | 0x3ff,
        u32::MAX,
    ] {
        let wrong = StoreHandle::from_bits(bits);
        if wrong != handle {
            assert_eq!(store.load(wrong, &mut out), Err(StoreError::Unknown(wrong)));
            assert_eq!(store.remove(wrong), Err(StoreError::Unknown(wrong)));
        }
    }
    store.remove(handle).unwrap();
    assert_eq!(store.remove(handle), Err(StoreError::Unknown(handle)));
}

#[test]
fn no_damaged_bit_of_a_stored_page_makes_wrong_bytes() {
    let (mut store, mut compressor) = (Store::new(1 << 20).unwrap(), Compressor::new());
    let content = page(1, 500);
    let compressed = compressor.compress(&content).unwrap();
    let bytes = HEADER + compressed.bytes();
    let handle = store.insert(compressed).unwrap();
    let mut out = [0; PAGE_SIZE];
    let mut noticed = 0;
    for (byte, bit) in (0..bytes).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
        let flip = |store: &mut Store| {
            let range = store.range(handle);
            store.slab.get_mut(range).unwrap()[byte] ^= 1 << bit;
        };
        flip(&mut store);
        match store.load(handle, &mut out) {
            // Several streams can mean the same page: one that repeats itself from further back, for instance.
            Ok(()) => assert!(out == content, "bit {bit} of byte {byte}"),
            Err(error) => noticed += usize::from(error == StoreError::Damaged(handle)),
        }
        flip(&mut store);
    }
    assert!(noticed > bytes * 8 - 100, "{noticed} of {bytes} bytes");
    store.load(handle, &mut out).unwrap();
    assert_eq!(out, content);
    // A damaged page can be forgotten like any other.
    store.damage(handle, 1);
    store.remove(handle).unwrap();
    assert_eq!((store.pages(), store.stored_bytes()), (0, 0));
}

#[test]
fn another_page_in_its_place_is_noticed() {
    let (mut store, mut compressor) = (Store::new(1 << 20).unwrap(), Compressor::new());
    let one = store.insert(compressor.compress(&page(1, 0)).unwrap()).unwrap();
    let two = store.insert(compressor.compress(&page(2, 0)).unwrap()).unwrap();
    let other = store.place(two).unwrap()[HEADER..].to_vec();
    let range = store.range(one);
    store.slab.get_mut(range).unwrap()[HEADER..].copy_from_slice(&other);
    let mut out = [0; PAGE_SIZE];
    assert_eq!(store.load(one, &mut out), Err(StoreError::Damaged(one)));
}

/// Resident bytes of the store's memory, as the kernel counts.
fn resident(store: &Store) -> usize {
    let start = store.slab.get(0..1).unwrap().as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let line = maps
        .lines()
        .skip_while(|line| !line.starts_with(&format!("{start:x}-")));
    let rss = line.skip(1).find(|line| line.starts_with("Rss:")).unwrap();
    rss.split_ascii_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        * 1024
}

#[test]
fn trimming_gives_the_memory_of_empty_blocks_back_and_it_can_be_used_again() {
    let (mut store, mut compressor) = (Store::new(64 << 20).unwrap(), Compressor::new());
    let mut fill = |store: &mut Store| -> Vec<StoreHandle> {
        let compressed = (0..10_000).map(|seed| {
            let content = page(seed as u8, 1000);
            store.insert(compressor.compress(&content).unwrap()).unwrap()
        });
        compressed.collect()
    };
    let handles = fill(&mut store);
    let full = resident(&store);
    assert!(full >= 10_000_000 && full <= store.reserved_bytes(), "{full}");
    handles[1..]
        .iter()
        .for_each(|handle| store.remove(*handle).unwrap());
    assert_eq!(resident(&store), full, "nothing goes back by itself");
    assert_eq!(store.trim(16), 16 * BLOCK, "no more than was asked for");
    while store.trim(16) > 0 {}
    assert!(resident(&store) <= BLOCK, "{} left of {full}", resident(&store));
    assert_eq!(store.empty_bytes(), 0);
    let mut out = [0; PAGE_SIZE];
    store.load(handles[0], &mut out).unwrap();
    let again = fill(&mut store);
    again
        .iter()
        .for_each(|handle| store.load(*handle, &mut out).unwrap());
    assert!(resident(&store) <= full + BLOCK);
}

proptest! {
    #[test]
    fn behaves_like_a_map_within_its_limit(
        steps in prop::collection::vec((0usize..40, 0usize..PAGE_SIZE, any::<u8>()), 1..300),
    ) {
        const LIMIT: usize = 2 << 20;
        let (mut store, mut compressor) = (Store::new(LIMIT).unwrap(), Compressor::new());
        let mut map: HashMap<usize, (StoreHandle, Page)> = HashMap::new();
        for (name, random, seed) in steps {
            if let Some((handle, expected)) = map.remove(&name) {
                let mut out = [0; PAGE_SIZE];
                store.load(handle, &mut out).unwrap();
                prop_assert_eq!(out, expected);
                store.remove(handle).unwrap();
            } else {
                let content = page(seed, random);
                if let Some(compressed) = compressor.compress(&content) {
                    match store.insert(compressed) {
                        Ok(handle) => { map.insert(name, (handle, content)); }
                        Err(error) => {
                            let full = matches!(error, StoreError::Full { .. });
                            prop_assert!(full);
                        }
                    }
                }
            }
            if seed < 8 {
                store.trim(usize::from(seed));
            }
            prop_assert_eq!(store.pages(), map.len());
            prop_assert!(store.reserved_bytes() <= LIMIT);
        }
        for (handle, _) in map.into_values() {
            store.remove(handle).unwrap();
        }
        prop_assert_eq!(store.stored_bytes(), 0);
        store.trim(LIMIT / BLOCK);
        prop_assert!(store.reserved_bytes() < BLOCK);
    }
}
