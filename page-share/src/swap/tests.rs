//! A swap file against damage, full disks and a map.

use std::os::unix::fs::MetadataExt;

use super::slots::EXTENT;
use super::*;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags};
use std::collections::HashMap;

fn swap(limit: u32) -> Swap {
    Swap::create(&std::env::temp_dir(), limit).unwrap()
}

fn write(swap: &mut Swap, pages: &[Page]) -> Vec<SwapSlot> {
    let mut slots = Vec::new();
    swap.write(pages, &mut slots).unwrap();
    slots
}

fn read(swap: &Swap, slot: SwapSlot) -> Result<Page, SwapError> {
    let mut page = [0; PAGE_SIZE];
    swap.locate(slot)?.read(&mut page).map(|()| page)
}

#[test]
fn a_batch_gets_consecutive_slots_and_comes_back() {
    let mut swap = swap(100_000);
    let pages: Vec<Page> = (0..5000).map(|i| [i as u8; PAGE_SIZE]).collect();
    let slots = write(&mut swap, &pages);
    assert!(slots.windows(2).all(|pair| pair[0].after(1) == pair[1]));
    for (slot, page) in slots.iter().zip(&pages) {
        assert_eq!(read(&swap, *slot).unwrap(), *page);
    }
}

#[test]
fn consecutive_slots_are_read_at_once_and_each_is_verified() {
    let mut swap = swap(100);
    let pages: Vec<Page> = (0..16).map(|i| [i as u8; PAGE_SIZE]).collect();
    let slots = write(&mut swap, &pages);
    let mut back = vec![[0xff; PAGE_SIZE]; 16];
    swap.locate_run(slots[0], 16).unwrap().read(&mut back).unwrap();
    assert_eq!(back, pages);
    swap.locate_run(slots[5], 3)
        .unwrap()
        .read(&mut back[..3])
        .unwrap();
    assert_eq!(back[..3], pages[5..8]);
    swap.shared.file.write_all_at(&[99], slots[7].offset()).unwrap();
    let located = swap.locate_run(slots[5], 3).unwrap();
    assert!(matches!(located.read(&mut back[..3]), Err(SwapError::Corrupt(slot)) if slot == slots[7]));
    located.read(&mut back[..2]).unwrap();
    swap.free(slots[6]).unwrap();
    assert!(matches!(swap.locate_run(slots[5], 3), Err(SwapError::Unknown(slot)) if slot == slots[6]));
    swap.shared.file.set_len(slots[5].offset() + 100).unwrap();
    assert!(matches!(located.read(&mut back[..3]), Err(SwapError::Corrupt(_))));
}

#[test]
fn every_way_to_damage_a_slot_is_detected() {
    let mut swap = swap(100);
    let slots = write(&mut swap, &[[1; PAGE_SIZE], [2; PAGE_SIZE], [3; PAGE_SIZE]]);
    let file = swap.shared.file.try_clone().unwrap();
    let corrupt =
        |swap: &Swap, slot| matches!(read(swap, slot), Err(SwapError::Corrupt(named)) if named == slot);
    file.write_all_at(&[9], slots[0].offset() + 4095).unwrap();
    assert!(corrupt(&swap, slots[0]), "one byte");
    file.write_all_at(&[3; PAGE_SIZE], slots[1].offset()).unwrap();
    assert!(corrupt(&swap, slots[1]), "another slot's page");
    assert_eq!(read(&swap, slots[2]).unwrap(), [3; PAGE_SIZE]);
    file.write_all_at(&[0; PAGE_SIZE], slots[2].offset()).unwrap();
    assert!(corrupt(&swap, slots[2]), "zeros");
    file.set_len(slots[2].offset() + 100).unwrap();
    assert!(corrupt(&swap, slots[2]), "a short file");
    swap.free(slots[1]).unwrap();
    assert!(matches!(read(&swap, slots[1]), Err(SwapError::Unknown(_))));
    assert!(matches!(swap.free(slots[1]), Err(SwapError::Unknown(_))));
    assert!(matches!(
        swap.free(SwapSlot::from_bits(u32::MAX)),
        Err(SwapError::Unknown(_))
    ));
}

#[test]
fn a_stale_page_of_the_same_slot_is_corrupt() {
    let mut swap = swap(1);
    let slot = write(&mut swap, &[[1; PAGE_SIZE]])[0];
    swap.free(slot).unwrap();
    assert_eq!(write(&mut swap, &[[2; PAGE_SIZE]]), [slot]);
    // The write never reached the disk: the old page is still there.
    swap.shared.file.write_all_at(&[1; PAGE_SIZE], 0).unwrap();
    assert!(matches!(read(&swap, slot), Err(SwapError::Corrupt(_))));
}

#[test]
fn a_full_file_takes_nothing_of_a_batch() {
    let mut swap = swap(3);
    let slots = write(&mut swap, &[[1; PAGE_SIZE], [2; PAGE_SIZE]]);
    let mut more = Vec::new();
    let error = swap.write(&[[3; PAGE_SIZE], [4; PAGE_SIZE]], &mut more);
    assert!(matches!(error, Err(SwapError::Full { limit: 3 })));
    assert!(more.is_empty());
    assert_eq!((swap.pages(), swap.room()), (2, 1));
    swap.free(slots[0]).unwrap();
    assert_eq!(write(&mut swap, &[[3; PAGE_SIZE], [4; PAGE_SIZE]]).len(), 2);
    assert_eq!(read(&swap, slots[1]).unwrap(), [2; PAGE_SIZE]);
}

/// A file that cannot grow past `bytes`: what a full disk looks like.
fn small_disk(bytes: u64) -> File {
    let memfd = rustix::fs::memfd_create("small-disk", MemfdFlags::ALLOW_SEALING).unwrap();
    let file = File::from(memfd);
    file.set_len(bytes).unwrap();
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW).unwrap();
    file
}

#[test]
fn a_full_disk_is_an_error_and_nothing_is_trusted() {
    let mut swap = Swap::with_file(small_disk(0), 100).unwrap();
    let mut slots = Vec::new();
    let error = swap.write(&[[1; PAGE_SIZE]], &mut slots);
    assert!(matches!(error, Err(SwapError::DiskFull { pages: 0, .. })));
    // A disk that promised the space and breaks the promise in the middle of a batch.
    let mut swap = Swap::with_file(small_disk(2 << PAGE_SHIFT | 100), 3).unwrap();
    swap.slots.back(0);
    let error = swap.write(&[[1; PAGE_SIZE]; 3], &mut slots);
    assert!(matches!(error, Err(SwapError::Io(_))));
    assert!(slots.is_empty() && swap.pages() == 0);
    assert!(matches!(
        read(&swap, SwapSlot::from_bits(0)),
        Err(SwapError::Unknown(_))
    ));
}

#[test]
fn a_disk_is_used_up_to_its_last_mib() {
    let mut swap = Swap::with_file(small_disk(11 << 19), u32::MAX).unwrap();
    let mut slots = Vec::new();
    let full = loop {
        if let Err(error) = swap.write(&[[1; PAGE_SIZE]; 64], &mut slots) {
            break error;
        }
    };
    assert!(
        matches!(full, SwapError::DiskFull { pages: 1280, .. }),
        "{full:?}"
    );
    assert_eq!(slots.len(), 1280, "5 MiB of 5.5");
}

#[test]
fn as_many_of_a_batch_are_written_as_fit_by_limit_and_disk() {
    const OFFERED: usize = 3 * EXTENT as usize;
    let pages: Vec<Page> = (0..OFFERED).map(|at| [at as u8; PAGE_SIZE]).collect();
    // Nothing has disk space yet, and less than an extent is left at the end.
    for (limit, disk, fit) in [
        (EXTENT + 20, 3, EXTENT + 20),
        (u32::MAX, 1, EXTENT),
        (2 * EXTENT + 20, 2, 2 * EXTENT),
        (u32::MAX, 0, 0),
    ] {
        let mut swap = Swap::with_file(small_disk(disk * EXTENT_BYTES), limit).unwrap();
        let mut slots = Vec::new();
        let error = swap.write_fitting(&pages, &mut slots).unwrap_err();
        assert!(
            matches!(error, SwapError::Full { .. } | SwapError::DiskFull { .. }),
            "{error:?}"
        );
        assert_eq!((slots.len(), swap.pages()), (fit as usize, fit));
        assert!(swap.write_fitting(&pages, &mut slots).is_err());
        for (at, &slot) in slots.iter().enumerate() {
            assert_eq!(read(&swap, slot).unwrap(), pages[at]);
        }
        // One goes for each that came back.
        for &slot in slots.iter().step_by(7) {
            swap.free(slot).unwrap();
            let mut one = Vec::new();
            swap.write_fitting(&pages, &mut one).unwrap_err();
            assert_eq!(one, [slot]);
        }
    }
}

#[test]
fn a_batch_is_not_written_in_part_where_the_disk_fails() {
    let mut swap = Swap::with_file(small_disk(2 << PAGE_SHIFT | 100), 3).unwrap();
    swap.slots.back(0);
    let mut slots = Vec::new();
    let error = swap.write_fitting(&[[1; PAGE_SIZE]; 5], &mut slots);
    assert!(matches!(error, Err(SwapError::Io(_))), "{error:?}");
    assert!(slots.is_empty() && swap.pages() == 0);
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    assert!(matches!(
        Swap::create(Path::new("/nowhere"), 1),
        Err(SwapError::Io(_))
    ));
}

/// Gives back all that can be. Returns the bytes.
fn shrink(swap: &mut Swap) -> u64 {
    let mut bytes = 0;
    while let Some(hole) = swap.shrink() {
        let punched = hole.punch();
        bytes += hole.bytes();
        swap.shrunk(hole, punched);
    }
    bytes
}

fn disk_bytes(swap: &Swap) -> u64 {
    swap.shared.file.metadata().unwrap().blocks() * 512
}

const EXTENT_BYTES: u64 = 1 << 20;

#[test]
fn shrinking_gives_disk_space_back_and_it_can_be_had_again() {
    let memfd = rustix::fs::memfd_create("swap", MemfdFlags::empty()).unwrap();
    let mut swap = Swap::with_file(File::from(memfd), EXTENT * 2 + 5).unwrap();
    for round in 0..3 {
        let pages = vec![[round; PAGE_SIZE]; EXTENT as usize * 2 + 5];
        let slots = write(&mut swap, &pages);
        assert_eq!(disk_bytes(&swap), 2 * EXTENT_BYTES + 5 * 4096);
        assert_eq!(shrink(&mut swap), 0);
        let (kept, gone) = slots.split_last().unwrap();
        gone.iter().for_each(|&slot| swap.free(slot).unwrap());
        // The next pages go to the start of the file: its first extent stays.
        assert_eq!(shrink(&mut swap), EXTENT_BYTES);
        assert_eq!(disk_bytes(&swap), swap.disk_bytes());
        assert_eq!(read(&swap, *kept).unwrap(), [round; PAGE_SIZE]);
        swap.free(*kept).unwrap();
        shrink(&mut swap);
        assert_eq!((disk_bytes(&swap), swap.disk_bytes(), swap.pages()), (0, 0, 0));
    }
}

#[test]
fn nothing_is_written_where_space_is_being_given_back() {
    let mut swap = swap(EXTENT * 2);
    let slots = write(&mut swap, &vec![[1; PAGE_SIZE]; EXTENT as usize + 1]);
    slots[..EXTENT as usize]
        .iter()
        .for_each(|&slot| swap.free(slot).unwrap());
    let hole = swap.shrink().unwrap();
    let mut more = Vec::new();
    let room = vec![[2; PAGE_SIZE]; EXTENT as usize - 1];
    swap.write(&room, &mut more).unwrap();
    assert!(matches!(
        swap.write(&[[3; PAGE_SIZE]], &mut more),
        Err(SwapError::Full { .. })
    ));
    let punched = hole.punch();
    punched.as_ref().unwrap();
    swap.shrunk(hole, punched);
    swap.write(&[[3; PAGE_SIZE]], &mut more).unwrap();
    assert_eq!(read(&swap, *more.last().unwrap()).unwrap(), [3; PAGE_SIZE]);
    for &slot in &more[..room.len()] {
        assert_eq!(read(&swap, slot).unwrap(), [2; PAGE_SIZE]);
    }
}

#[test]
fn free_slots_are_not_chosen_where_space_is_being_given_back() {
    let mut swap = swap(EXTENT * 3);
    let slots = write(&mut swap, &vec![[1; PAGE_SIZE]; EXTENT as usize * 3]);
    let (first, rest) = slots.split_at(EXTENT as usize);
    let (second, third) = rest.split_at(EXTENT as usize);
    second
        .iter()
        .chain(&third[..3])
        .for_each(|&slot| swap.free(slot).unwrap());
    // The second extent goes back; the search for free slots begins before it, and there is room behind it.
    let hole = swap.shrink().unwrap();
    let more = write(&mut swap, &[[2; PAGE_SIZE]; 3]);
    let punched = hole.punch();
    punched.as_ref().unwrap();
    swap.shrunk(hole, punched);
    assert_eq!(more, third[..3]);
    more.iter()
        .for_each(|&slot| assert_eq!(read(&swap, slot).unwrap(), [2; PAGE_SIZE]));
    first
        .iter()
        .for_each(|&slot| assert_eq!(read(&swap, slot).unwrap(), [1; PAGE_SIZE]));
}

#[test]
fn a_file_system_that_cannot_shrink_is_asked_once() {
    let mut swap = swap(EXTENT);
    let slots = write(&mut swap, &[[1; PAGE_SIZE]; 3]);
    slots.iter().for_each(|&slot| swap.free(slot).unwrap());
    let hole = swap.shrink().unwrap();
    swap.shrunk(hole, Err(io::ErrorKind::Unsupported.into()));
    assert!(swap.shrink().is_none());
    assert_eq!(swap.disk_bytes(), EXTENT_BYTES);
    let slot = write(&mut swap, &[[2; PAGE_SIZE]])[0];
    assert_eq!(read(&swap, slot).unwrap(), [2; PAGE_SIZE]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn behaves_like_a_map(steps in prop::collection::vec((any::<u8>(), 0usize..20), 1..100)) {
        let mut swap = swap(64);
        let mut map: HashMap<SwapSlot, Page> = HashMap::new();
        for (seed, count) in steps {
            let victim = map.keys().min_by_key(|slot| slot.bits() ^ u32::from(seed)).copied();
            if let (true, Some(slot)) = (seed % 2 == 0, victim) {
                prop_assert_eq!(read(&swap, slot).unwrap(), map[&slot]);
                swap.free(slot).unwrap();
                map.remove(&slot);
                shrink(&mut swap);
            } else {
                let pages: Vec<Page> = (0..count).map(|i| [seed ^ i as u8; PAGE_SIZE]).collect();
                let mut slots = Vec::new();
                let room = 64 - map.len();
                if seed % 4 == 1 {
                    prop_assert_eq!(swap.write(&pages, &mut slots).is_ok(), count <= room);
                } else {
                    prop_assert_eq!(swap.write_fitting(&pages, &mut slots).is_ok(), count <= room);
                    prop_assert_eq!(slots.len(), count.min(room));
                }
                for (slot, page) in slots.into_iter().zip(pages) {
                    prop_assert!(map.insert(slot, page).is_none());
                }
            }
            prop_assert_eq!(swap.pages() as usize, map.len());
        }
        for (slot, page) in map {
            prop_assert_eq!(read(&swap, slot).unwrap(), page);
        }
    }
}
