//! Shares memory between two plain mappings of one process, without any VM.
//!
//! `cargo run --release -p levy-page-share --example two_mappings`

use page_share::{AnonymousMemory, Domain, Gfn, LocalManager, Options, PAGE_SIZE, Page, Region};

/// 64 MiB each.
const PAGES: u32 = 16_384;

/// A page that only `number` decides.
fn page(number: u32) -> Page {
    let mut page = [0; PAGE_SIZE];
    for (index, word) in page.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *word = (number.wrapping_mul(2_654_435_761) ^ index as u32).to_le_bytes();
    }
    page
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The manager of one sharing domain: its index, and a pool of at most 64 MiB.
    let manager = LocalManager::new(Domain::new(PAGES)?);

    let mut guests = Vec::new();
    for _ in 0..2 {
        // Any private anonymous memory will do; see MemoryRange::adopt and, with the feature, vm-memory's types.
        let memory = AnonymousMemory::new(PAGES)?;
        for number in 0..PAGES {
            memory.write_page(number, &page(number));
        }
        let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default())?;
        region.connect(Box::new(manager.attach(region.page_limit())?))?;
        guests.push((memory, region));
    }

    // The first pass sees everything written, the second reports what was quiet, the third takes up offers.
    // A VMM starts a ScanThread with a budget instead.
    for _ in 0..3 {
        guests.iter().for_each(|(_, region)| region.scan_pass());
    }
    for (_, region) in &guests {
        let stats = region.stats();
        println!(
            "{} of {PAGES} pages shared, through {} mappings more",
            stats.shared, stats.mappings
        );
    }
    let pool = manager.with(|domain| domain.sizes().pool_pages).unwrap_or(0);
    println!(
        "{pool} pages in the pool: {} MiB saved",
        ((2 * PAGES as usize - pool as usize) * PAGE_SIZE) >> 20
    );

    // A write makes a private copy; the other mapping and the pool do not notice.
    guests[0].0.write_page(7, &page(1_000_000));
    assert!(guests[0].0.read_page(7) == page(1_000_000) && guests[1].0.read_page(7) == page(7));

    // Dropping the regions gives every page memory of its own again.
    let memories: Vec<_> = guests.into_iter().map(|(memory, _region)| memory).collect();
    assert!(memories[1].read_page(100) == page(100));
    Ok(())
}
