//! What a region says that its guest occupies and costs, against what the kernel says.

mod smaps;

use page_share::{AnonymousMemory, Domain, Gfn, LocalManager, Options, PAGE_SIZE, Page, Region};
use smaps::smaps;

const PAGES: u32 = 4096;

/// The tests measure the whole process, so only one at a time.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn page(content: u32) -> Page {
    let mut page = [0; PAGE_SIZE];
    for (index, word) in page.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *word = (content + 1)
            .wrapping_mul(0x9E37_79B9 ^ index as u32)
            .to_le_bytes();
    }
    page
}

/// Runs of four pages that are alike everywhere, and four that are unlike all others.
fn content(at: u32) -> u32 {
    if at % 8 < 4 { at % 8 } else { at }
}

#[test]
fn a_region_counts_what_the_kernel_counts() {
    let _alone = ALONE.lock();
    let bytes = |pages: u64| pages * PAGE_SIZE as u64;
    let memory = AnonymousMemory::new(PAGES).unwrap();
    (0..PAGES).for_each(|at| memory.write_page(at, &page(content(at))));
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
    let manager = LocalManager::new(Domain::new(1 << 16).unwrap());
    region.connect(Box::new(manager.attach(PAGES).unwrap())).unwrap();
    let range = memory.address()..memory.address() + PAGES as usize * PAGE_SIZE;
    let before = smaps(range.clone()).mappings;
    (0..5).for_each(|_| region.scan_pass());
    (0..PAGES).for_each(|at| assert!(memory.read_page(at) == page(content(at)), "page {at}"));

    let (stats, kernel) = (region.stats(), smaps(range.clone()));
    assert_eq!((stats.shared, stats.private), (2048, 2048), "{stats:#?}");
    assert_eq!(kernel.anonymous, bytes(stats.private), "{kernel:?}");
    // Resident size does not see that 2048 pages are 4; proportional size does.
    assert_eq!(kernel.rss, bytes(u64::from(PAGES)), "{kernel:?}");
    assert!(kernel.pss < kernel.anonymous + (64 << 10), "{kernel:?}");
    let grown = kernel.mappings - before;
    assert!(grown >= 1000, "{kernel:?}");
    assert!(
        stats.mappings.abs_diff(grown) <= 4,
        "{} said, {grown} true",
        stats.mappings
    );
    let least = u64::from(PAGES) * 7 + grown * 200;
    assert!(
        (least..least * 3 / 2).contains(&stats.metadata_bytes),
        "{stats:#?}"
    );

    // Broken pages are the guest's own again before they are re-homed, and after.
    for at in (0..PAGES).step_by(64) {
        memory.store(at as usize * PAGE_SIZE, 1);
    }
    let mut broken = 0;
    for _ in 0..12 {
        region.scan_pass();
        let (stats, kernel) = (region.stats(), smaps(range.clone()));
        broken = broken.max(stats.broken);
        if stats.cow_breaks == 64 {
            assert_eq!(
                kernel.anonymous,
                bytes(stats.private + stats.broken),
                "{stats:#?}"
            );
        }
    }
    assert!(
        broken > 0 && region.stats().cow_breaks == 64,
        "{:#?}",
        region.stats()
    );
}

#[test]
fn the_table_takes_what_it_says() {
    let _alone = ALONE.lock();
    let anonymous = || smaps(0..usize::MAX).anonymous;
    // 8 GiB of which no page is there.
    let memory = AnonymousMemory::new(2 << 20).unwrap();
    let before = anonymous();
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
    let (said, grown) = (region.stats().metadata_bytes, anonymous() - before);
    assert!(said >= 14 << 20, "{said}");
    // Besides the table: staging buffers and stacks.
    assert!(
        grown + (1 << 20) >= said && grown < said + (20 << 20),
        "{said} said, {grown} true"
    );
}
