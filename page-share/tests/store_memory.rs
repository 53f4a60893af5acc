//! What the compressed store takes goes back when it is no longer needed. A test of the whole process's memory, so it
//! is alone in it.

mod smaps;

use page_share::{AnonymousMemory, Gfn, Options, PAGE_SIZE, Page, PageRun, Region};
use smaps::smaps;

const PAGES: u32 = 4096;

#[test]
fn memory_of_compressed_pages_that_left_goes_back_to_the_kernel() {
    let memory = AnonymousMemory::new(PAGES).unwrap();
    // A third of each page is noise: 16 MiB of pages are 6 MiB in the store.
    let content = |at: u32| {
        let mut content: Page = [0; PAGE_SIZE];
        let noise = content.as_chunks_mut::<4>().0[..340].iter_mut().enumerate();
        noise.for_each(|(index, word)| {
            let random = (at ^ index as u32).wrapping_mul(0x85EB_CA6B).rotate_left(13);
            *word = (random ^ at << 7).wrapping_mul(0xC2B2_AE35).to_le_bytes();
        });
        content
    };
    (0..PAGES).for_each(|at| memory.write_page(at, &content(at)));
    let options = Options::default().with_store_bytes(64 << 20);
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    let guest = memory.address()..memory.address() + PAGES as usize * PAGE_SIZE;
    let own = || smaps(0..usize::MAX).anonymous - smaps(guest.clone()).anonymous;
    let before = own();
    assert_eq!(region.compress(PageRun::new(Gfn::new(0), PAGES)), PAGES);
    let full = own();
    let kept = region.stats().store_bytes;
    assert!(
        kept > 5 << 20 && full - before >= kept * 9 / 10,
        "{kept}, {before}, {full}"
    );
    // A few stay; the others come back by touches, of which only the handler knows.
    for at in 64..PAGES {
        assert!(memory.read_page(at) == content(at), "page {at}");
    }
    assert!(
        region.stats().store_bytes >= kept,
        "the handler gives nothing back"
    );
    region.scan_step(1);
    let (left, rest) = (region.stats().store_bytes, own());
    assert!(left < 3 << 20, "{left} of {kept} left");
    assert!(
        rest - before < left + (1 << 20),
        "{rest} of {full} left, {before} before"
    );
    (0..64).for_each(|at| assert!(memory.read_page(at) == content(at), "page {at}"));
}
