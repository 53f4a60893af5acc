//! Guest RAM: sizes, frames given back, huge pages.

use vm_memory::{Address, Bytes};

use super::*;

#[test]
fn released_frames_read_as_zeros_and_others_keep_their_bytes() {
    let ram = GuestRam::new(1 << 20).unwrap();
    for page in 0..4 {
        ram.view()
            .write_obj(0xAAu8, GuestAddress(page * PAGE_SIZE))
            .unwrap();
    }
    ram.release(
        GfnRange {
            start: Gfn(1),
            pages: 2,
        },
        page_share::Release::Report,
    )
    .unwrap();
    let first_bytes: Vec<u8> = (0..4)
        .map(|page| ram.view().read_obj(GuestAddress(page * PAGE_SIZE)).unwrap())
        .collect();
    assert_eq!(first_bytes, [0xAA, 0, 0, 0xAA]);
    assert_eq!(ram.released_pages(), 2);
}

#[test]
fn frames_outside_ram_are_refused() {
    let ram = GuestRam::new(1 << 20).unwrap();
    for (start, pages) in [(256, 1), (255, 2), (0, 0), (u64::MAX, 2), (0, u64::MAX)] {
        let range = GfnRange {
            start: Gfn(start),
            pages,
        };
        assert!(
            matches!(
                ram.release(range, page_share::Release::Report),
                Err(RamError::NotRam { .. })
            ),
            "{range:?}"
        );
    }
}

#[test]
fn frames_released_while_a_region_adopts_the_memory_go_through_it() {
    let ram = GuestRam::new(4 << 20).unwrap();
    ram.view().write_obj(1u8, GuestAddress(0)).unwrap();
    let adopt = || Region::adopt(ram.ranges().unwrap(), Options::default());
    let first = GfnRange {
        start: Gfn(0),
        pages: 1,
    };
    std::thread::scope(|scope| {
        let region = ram.manage(|| {
            scope.spawn(|| ram.release(first, page_share::Release::Balloon).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert_eq!(ram.released_pages(), 0, "dropped while it was being adopted");
            adopt()
        });
        let region = match region {
            Ok(region) => region,
            Err(error) => return eprintln!("skipped: {error}"),
        };
        while ram.released_pages() == 0 {
            std::thread::yield_now();
        }
        assert_eq!(
            region.state(page_share::Gfn::new(0)),
            page_share::State::Ballooned
        );
    });
}

#[test]
fn sizes_that_are_not_pages_are_refused() {
    assert!(matches!(GuestRam::new(0), Err(RamError::Size(0))));
    assert!(matches!(GuestRam::new(4097), Err(RamError::Size(4097))));
}

#[test]
fn memory_of_every_size_can_have_huge_pages_and_be_managed() {
    for mib in [1, 3, 63, 65, 301, 513, 3071, 3072, 3073, 3328, 3500, 8192] {
        let ram = GuestRam::new(mib << 20).unwrap();
        for region in ram.regions() {
            let block = (2 << 20) - 1;
            let (frames, host) = (region.frames.start.address() & block, region.host as u64 & block);
            assert_eq!(frames, host, "{mib} MiB: {region:?}");
        }
        let options = Options::default().with_blocks(page_share::Blocks::Huge);
        let region = ram.manage(|| Region::adopt(ram.ranges().unwrap(), options));
        let region = match region {
            Ok(region) => region,
            Err(error) => return eprintln!("skipped: {error}"),
        };
        let space = layout::FrameSpace::of_ram(mib << 20).unwrap();
        assert_eq!(region.page_limit(), space.frames(), "{mib} MiB");
        let stats = region.stats();
        assert_eq!(
            (stats.huge + stats.empty) * PAGE_SIZE,
            mib << 20,
            "the hole is no memory"
        );
    }
}

/// The flags of the mapping that starts at `address`, as in "rd wr mr mw me ac dc dd hg", if the kernel shows them.
fn flags_at(address: usize) -> Option<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let mapping = smaps.lines().skip_while(|line| {
        let start = line.split_once('-').map(|(start, _)| start);
        start.and_then(|start| usize::from_str_radix(start, 16).ok()) != Some(address)
    });
    let flags = mapping.skip(1).find_map(|line| line.strip_prefix("VmFlags:"));
    Some(flags?.trim().to_owned())
}

#[test]
fn huge_pages_are_asked_for_before_anything_is_loaded_and_change_no_byte() {
    let ram = GuestRam::new(4 << 30).unwrap();
    let written = GuestAddress(5 << 20);
    ram.view().write_obj(0x5Au8, written).unwrap();
    ram.prefer_huge_pages();
    ram.view().write_obj(0xA5u8, written.unchecked_add(1)).unwrap();
    let bytes: [u8; 3] = ram.view().read_obj(written).unwrap();
    assert_eq!(bytes, [0x5A, 0xA5, 0]);
    if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        return println!("skipped: this kernel has no transparent huge pages");
    }
    for region in ram.regions() {
        let flags = flags_at(region.host).expect("the kernel shows flags of mappings");
        assert!(flags.split(' ').any(|flag| flag == "hg"), "{region:?}: {flags}");
    }
}

#[test]
fn a_guest_above_the_hole_has_two_regions() {
    let ram = GuestRam::new(4 << 30).unwrap();
    assert_eq!(ram.regions().len(), 2);
    assert_eq!(ram.regions()[1].frames.start.address(), layout::HIGH_RAM_START);
    assert_eq!(ram.bytes(), 4 << 30);
}
