//! The swap file's space on the disk goes back when pages have come back, and is there again for the next ones.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use page_share::{AnonymousMemory, Gfn, Options, PAGE_SIZE, Page, PageRun, Region, Swap};

/// Many extents of the file and a bit.
const PAGES: u32 = 3 * 4096 + 100;

fn content(page: u32, round: u32) -> Page {
    let mut content = [round as u8 + 1; PAGE_SIZE];
    content[..4].copy_from_slice(&page.to_le_bytes());
    content
}

fn disk_bytes(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

#[test]
fn disk_space_of_pages_that_came_back_goes_back() {
    let file = tempfile::tempfile().unwrap();
    let memory = AnonymousMemory::new(PAGES).unwrap();
    let options = Options::default().with_swap(Swap::with_file(file.try_clone().unwrap(), PAGES).unwrap());
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    let all = PageRun::new(Gfn::new(0), PAGES);
    let bytes = u64::from(PAGES) * PAGE_SIZE as u64;
    for round in 0..2 {
        (0..PAGES).for_each(|at| memory.write_page(at, &content(at, round)));
        assert_eq!(region.swap_out(all).unwrap(), PAGES);
        let full = disk_bytes(&file);
        assert!(
            (bytes..bytes + (1 << 20)).contains(&full),
            "{full} of {bytes} bytes"
        );
        // The last page stays in the file; the others come back by touches, of which only the handler knows.
        let come_back = PAGES - 16;
        for at in 0..come_back {
            assert!(
                memory.read_page(at) == content(at, round),
                "page {at} of round {round}"
            );
        }
        region.scan_step(1);
        let left = disk_bytes(&file);
        assert!(
            left <= 3 << 20,
            "{left} of {full} bytes are left for {} pages",
            region.stats().swapped
        );
        for at in come_back..PAGES {
            assert!(
                memory.read_page(at) == content(at, round),
                "page {at} of round {round}"
            );
        }
        region.scan_step(1);
        assert!(
            disk_bytes(&file) <= 64 << 10,
            "{} bytes for no page",
            disk_bytes(&file)
        );
    }
}
