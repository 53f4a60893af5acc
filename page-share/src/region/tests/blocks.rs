//! Memory of other kinds: huge blocks, and what a VMM has mapped.

use super::page;
use crate::{AnonymousMemory, Gfn, Options, PageRun, Region};
#[cfg(feature = "vm-memory")]
use crate::{Domain, LocalManager, PAGE_SIZE, State};

#[test]
fn huge_blocks_are_left_alone_until_they_are_split_and_can_be_rebuilt() {
    let memory = AnonymousMemory::new(1536).unwrap();
    (0..1536).for_each(|at| memory.write_page(at, &page(u64::from(at))));
    let options = Options {
        blocks: crate::Blocks::Huge,
        store_bytes: 16 << 20,
        ..Options::default()
    };
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    assert_eq!(region.stats().huge, 1536);
    assert_eq!(region.compress(PageRun::new(Gfn::new(0), 1536)), 0);
    assert_eq!(region.split_run(PageRun::new(Gfn::new(600), 1)), 1);
    assert_eq!((region.stats().huge, region.stats().private), (1024, 512));
    assert!(region.compress(PageRun::new(Gfn::new(512), 16)) > 0);
    assert!(!region.rebuild_block(Gfn::new(512)), "pages are missing");
    region.bring_back(PageRun::new(Gfn::new(512), 512));
    if region.rebuild_block(Gfn::new(512)) {
        assert_eq!((region.stats().huge, region.stats().blocks_rebuilt), (1536, 1));
    }
    assert_eq!(region.split_blocks(10), region.stats().blocks_split as u32 - 1);
    (0..1536).for_each(|at| assert!(memory.read_page(at) == page(u64::from(at)), "page {at}"));
}

#[cfg(feature = "vm-memory")]
#[test]
fn the_memory_of_a_vmm_is_adopted_with_its_hole() {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(4 << 20), 1 << 20)];
    let memory: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    memory.write_slice(&page(7), GuestAddress(4 << 20)).unwrap();
    memory.write_slice(&page(7), GuestAddress(4096)).unwrap();
    let adopted = crate::MemoryRange::all_of_vm_memory(&memory).unwrap();
    let region = Region::adopt(adopted, Options::default()).unwrap();
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    region
        .connect(Box::new(manager.attach(region.page_limit()).unwrap()))
        .unwrap();
    (0..4).for_each(|_| region.scan_pass());
    assert_eq!((region.stats().shared, region.page_limit()), (2, 1280));
    assert_eq!(region.state(Gfn::new(500)), State::Hole);
    let mut bytes = [0; PAGE_SIZE];
    memory.read_slice(&mut bytes, GuestAddress(4 << 20)).unwrap();
    assert!(bytes == page(7));
}
