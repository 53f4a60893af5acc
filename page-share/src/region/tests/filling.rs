//! Pages that are filled and mapped, and a kernel that has no room for them yet.
#![allow(unsafe_code)]
// UNSAFETY: one test unmaps a page behind the region's back, as a call does that the kernel fails halfway.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{in_child, merged, page, small_region};
use crate::region::engine::lock;
use crate::region::merge::PoolIndex;
use crate::{Domain, Gfn, LocalManager, Options, PAGE_SIZE, PageRun, Region, Release};

/// Runs `action` while the kernel allows this process no further address space, until `region` has met that `refusals`
/// times.
fn without_room<T>(region: &Region, refusals: u64, action: impl FnOnce() -> T) -> T {
    let before = getrlimit(Resource::As);
    let none = Rlimit {
        current: Some(0),
        ..before
    };
    let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // By then all that this thread needs is there.
            begun.store(true, Ordering::SeqCst);
            while region.guest.counters().mapping_failures.get() < refusals && !ended.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
            setrlimit(Resource::As, before).unwrap();
        });
        while !begun.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        setrlimit(Resource::As, none).unwrap();
        let outcome = action();
        ended.store(true, Ordering::SeqCst);
        outcome
    })
}

#[test]
fn what_the_kernel_has_no_room_for_is_asked_for_again_and_counted_once() {
    let (_memory, region) = small_region(Options::default());
    let span = region.guest.span(PageRun::new(Gfn::new(0), 1));
    let mut tries = 0;
    region.guest.insist("map", span, || {
        tries += 1;
        match tries {
            1..4 => Err(Errno::NOMEM),
            _ => Ok(()),
        }
    });
    assert_eq!((tries, region.stats().mapping_failures), (4, 1));
}

#[test]
fn a_page_whose_mapping_the_kernel_took_before_it_failed_reads_zero_when_it_is_released() {
    let name =
        "filling::a_page_whose_mapping_the_kernel_took_before_it_failed_reads_zero_when_it_is_released";
    let status = in_child(name, || {
        let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
        let guests = merged(&manager, 16);
        let (memory, region) = &guests[0];
        let run = PageRun::new(Gfn::new(5), 1);
        // SAFETY: a page that nothing reads before it is mapped again.
        unsafe { libc::munmap(region.guest.span(run).start() as *mut libc::c_void, PAGE_SIZE) };
        // The kernel refuses the mapping, and the one in its place once.
        assert_eq!(
            without_room(region, 2, || region.release(run, Release::Report)),
            1
        );
        assert_eq!(region.stats().mapping_failures, 2);
        assert_eq!(memory.read_page(5), [0; PAGE_SIZE]);
        memory.write_page(5, &page(1000));
        region.scan_pass();
        (0..16).for_each(|at| assert_eq!(memory.read_page(at), page(if at == 5 { 1000 } else { at.into() })));
        drop(guests);
        assert_eq!(manager.with(|domain| domain.sizes().references), Some(0));
    });
    assert!(status.is_none_or(|status| status.success()));
}

#[test]
fn what_was_granted_for_pages_after_the_first_refused_mapping_goes_back() {
    let name = "filling::what_was_granted_for_pages_after_the_first_refused_mapping_goes_back";
    let status = in_child(name, || {
        const PAGES: u32 = 400;
        let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
        let guests = merged(&manager, PAGES);
        let (memory, region) = &guests[0];
        let all = PageRun::new(Gfn::new(0), PAGES);
        let table = region.guest.table();
        let indices: Vec<PoolIndex> = all.pages().map(|page| table.last_location(page)).collect();
        let mut engine = lock(&region.engine);
        let merger = engine.merger();
        assert_eq!(merger.rehome(all), PAGES);
        // What was re-homed is granted again.
        merger.forget_references();
        assert!(without_room(region, u64::MAX, || merger.merge(all, &indices)));
        let owed = merger.take_owed();
        merger.return_references(owed.references().iter().copied());
        drop(engine);
        assert_eq!(region.stats().mapping_failures, 1, "one refusal is enough");
        assert_eq!(owed.references(), indices);
        (0..PAGES).for_each(|at| assert_eq!(memory.read_page(at), page(at.into())));
        drop(guests);
        assert_eq!(manager.with(|domain| domain.sizes().references), Some(0));
    });
    assert!(status.is_none_or(|status| status.success()));
}
