//! What goes wrong, and what must hold all the same.
#![allow(unsafe_code)]
// UNSAFETY: fork, raw reads into managed memory and address space that is used up on purpose.

mod contents;
mod managed_guest;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use contents::page;
use managed_guest::*;
use page_share::port::{Answer, Offer, Port, PortError, Publication, Reconnected, Report, Session};
use page_share::{
    AnonymousMemory, Domain, Gfn, LocalManager, LocalPort, Options, PAGE_SIZE, Page, PageRun, PoolGeneration,
    Region, Release, Slot, State,
};

#[test]
fn a_merged_page_that_is_released_reads_zero() {
    let (memory, region) = merged_guest(&manager(), options());
    // Broken ones too.
    memory.store(PAGE_SIZE, 7);
    for why in [Release::Balloon, Release::Report] {
        let run = PageRun::new(Gfn::new(if why == Release::Balloon { 0 } else { 100 }), 100);
        assert_eq!(region.release(run, why), 100);
        for at in run.first.get()..run.first.get() + 100 {
            assert!(
                memory.read_page(at) == [0; PAGE_SIZE],
                "page {at} shows old bytes"
            );
        }
    }
    assert_eq!(region.stats().balloon_pops, 100);
}

#[test]
fn a_released_page_that_is_written_again_is_found_by_the_scan() {
    let manager = manager();
    let (memory, region) = merged_guest(&manager, options());
    region.release(all(), Release::Report);
    for at in 0..PAGES {
        memory.write_page(at, &page(u64::from(at / 2)));
    }
    (0..4).for_each(|_| region.scan_pass());
    assert_eq!(region.stats().shared, u64::from(PAGES), "{:#?}", region.stats());
    assert_pages(&memory, |at| u64::from(at / 2));
}

#[test]
fn dropping_a_region_gives_everything_back_first() {
    let manager = manager();
    let (memory, region) = merged_guest(&manager, options());
    region.unshare_all();
    (0..2).for_each(|_| region.scan_pass());
    region.unshare_all();
    assert!(region.start_sample(50) > 0);
    region.compress(PageRun::new(Gfn::new(0), 100));
    region.swap_out(PageRun::new(Gfn::new(100), 100)).unwrap();
    let stats = region.stats();
    assert!(
        stats.sampled > 0 && stats.compressed > 0 && stats.swapped > 0,
        "{stats:#?}"
    );
    drop(region);
    assert_pages(&memory, |at| u64::from(at / 2));
    assert_eq!(manager.with(|domain| domain.sizes().references), Some(0));
}

#[test]
fn discarding_a_region_leaves_zeros_and_no_references() {
    let manager = manager();
    let (memory, region) = merged_guest(&manager, options());
    region.discard();
    assert!((0..PAGES).all(|at| memory.read_page(at) == [0; PAGE_SIZE]));
    assert_eq!(manager.with(|domain| domain.sizes().references), Some(0));
}

#[test]
fn a_direct_read_in_flight_lands_because_its_pages_are_marked() {
    let manager = manager();
    let (memory, region) = merged_guest(&manager, options());
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("disk");
    File::create(&path).unwrap().write_all(&page(777)).unwrap();
    let direct = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    let Ok(direct) = direct else {
        eprintln!("skipped: {} is on a file system without O_DIRECT", path.display());
        return;
    };
    let region = Arc::new(region);
    let stop = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stop.load(Ordering::Relaxed) == 0 {
                region.unshare_all();
                region.scan_pass();
                region.compress(all());
            }
        });
        for round in 0..2000u32 {
            let at = round % PAGES;
            let pin = region.pin(PageRun::new(Gfn::new(at), 1)).unwrap();
            // SAFETY: reads into one mapped page.
            let got = unsafe { libc::pread(direct.as_raw_fd(), host_address(&memory, at), PAGE_SIZE, 0) };
            assert_eq!(got, PAGE_SIZE as isize, "{}", std::io::Error::last_os_error());
            drop(pin);
            assert!(
                memory.read_page(at) == page(777),
                "round {round}: the read was lost"
            );
            memory.write_page(at, &page(u64::from(at / 2)));
        }
        stop.store(1, Ordering::Relaxed);
    });
    assert_pages(&memory, |at| u64::from(at / 2));
}

#[test]
fn a_pinned_page_stays_where_it_is() {
    let (_memory, region) = guest(u64::from, options());
    let pin = region.pin(PageRun::new(Gfn::new(10), 5)).unwrap();
    assert_eq!(region.compress(all()), PAGES - 5);
    assert_eq!(region.state(Gfn::new(12)), State::Private);
    drop(pin);
    assert_eq!(region.compress(PageRun::new(Gfn::new(10), 5)), 5);
    assert!(region.pin(PageRun::new(Gfn::new(PAGES - 1), 2)).is_none());
}

/// Forks; the child waits until it is killed. Returns its id.
fn fork_and_wait() -> i32 {
    // SAFETY: the child only sleeps.
    match unsafe { libc::fork() } {
        0 => loop {
            // SAFETY: nothing is passed.
            unsafe { libc::pause() };
        },
        child => child,
    }
}

fn reap(child: i32) {
    // SAFETY: our own child.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
}

#[test]
fn a_fork_does_not_make_pages_immovable() {
    let (memory, region) = guest(u64::from, options());
    let child = fork_and_wait();
    assert_eq!(region.compress(all()), PAGES);
    assert_eq!(region.stats().pages_stuck, 0);
    reap(child);
    assert_pages(&memory, u64::from);
}

#[test]
fn pages_that_the_kernel_will_not_move_are_remembered_and_left() {
    let (memory, region) = guest(u64::from, options());
    // What a region never allows: a child that shares the pages.
    // SAFETY: only undoes MADV_DONTFORK.
    unsafe {
        libc::madvise(
            host_address(&memory, 0),
            PAGES as usize * PAGE_SIZE,
            libc::MADV_DOFORK,
        )
    };
    let child = fork_and_wait();
    // Written pages are copies of our own again: every other run of ten can be moved, so moves come up short.
    for at in (0..PAGES).filter(|at| (at / 10).is_multiple_of(2)) {
        memory.write_page(at, &page(u64::from(at)));
    }
    assert_eq!(region.compress(all()), PAGES / 2);
    assert_eq!(region.stats().pages_stuck, u64::from(PAGES / 2));
    reap(child);
    assert_pages(&memory, u64::from);
}

#[test]
fn the_pool_cannot_be_written_by_those_who_map_it() {
    let manager = manager();
    let port = manager.attach(PAGES).unwrap();
    let pool = port.session().pool.clone();
    assert!(pool.write_at(b"evil", 0).is_err());
    let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping, if it were given.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE_SIZE,
            read_write,
            shared,
            pool.as_raw_fd(),
            0,
        )
    };
    assert_eq!(mapped, libc::MAP_FAILED);
    assert_eq!(
        std::os::unix::fs::MetadataExt::mode(&pool.metadata().unwrap()) & 0o777,
        0o400
    );
    let path = format!("/proc/self/fd/{}", pool.as_raw_fd());
    let child = std::thread::spawn(move || {
        // Another user cannot open it anew; only this thread changes its user.
        // SAFETY: nothing is passed by reference.
        unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) };
        File::options().write(true).open(path).map(drop)
    });
    assert!(
        child.join().unwrap().is_err(),
        "another user opened the pool for writing"
    );
}

#[test]
fn growth_waits_for_credit_while_the_gate_is_closed() {
    let manager = manager();
    let (memory, region) = merged_guest(&manager, options());
    region.release(PageRun::new(Gfn::new(500), 100), Release::Report);
    region.close_gate();
    // Threads that wait for ever own what they use, and are left behind where the test fails.
    let (memory, done) = (Arc::new(memory), Arc::new(AtomicU32::new(0)));
    let grows = |at: u32| {
        let (memory, done) = (memory.clone(), done.clone());
        std::thread::spawn(move || {
            memory.store(at as usize * PAGE_SIZE, 1);
            done.fetch_add(1, Ordering::SeqCst);
        });
    };
    let settled = |expected: u32| {
        let start = std::time::Instant::now();
        while done.load(Ordering::SeqCst) < expected && start.elapsed() < Duration::from_secs(300) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(done.load(Ordering::SeqCst), expected);
    };
    [0, 10, 20, 510].into_iter().for_each(grows);
    settled(0);
    // Reads go on.
    assert!(memory.read_page(30) == page(15));
    region.add_credit(1);
    settled(1);
    region.add_credit(2);
    settled(3);
    region.open_gate();
    settled(4);
    assert!(region.stats().faults_gated >= 4);
}

#[test]
fn a_full_pool_only_ends_the_sharing_of_new_contents() {
    let manager = LocalManager::new(Domain::new(64).unwrap());
    let (memory, region) = guest(|at| u64::from(at / 2), Options::default());
    region.connect(Box::new(manager.attach(PAGES).unwrap())).unwrap();
    (0..5).for_each(|_| region.scan_pass());
    let stats = region.stats();
    assert!(stats.shared > 0 && stats.shared <= 128, "{stats:#?}");
    assert!(manager.with(|domain| domain.counters().refused_full).unwrap() > 0);
    assert_pages(&memory, |at| u64::from(at / 2));
}

#[test]
fn equal_pages_of_two_domains_are_never_shared() {
    let managers = [manager(), manager()];
    let guests: Vec<_> = managers
        .iter()
        .map(|manager| {
            let (memory, region) = guest(u64::from, Options::default());
            region.connect(Box::new(manager.attach(PAGES).unwrap())).unwrap();
            (memory, region)
        })
        .collect();
    for _ in 0..4 {
        guests.iter().for_each(|(_, region)| region.scan_pass());
    }
    for (memory, region) in &guests {
        assert_eq!(region.stats().shared, 0);
        assert_pages(memory, u64::from);
    }
}

/// A port that fails or lies as told.
struct Faulty {
    inner: LocalPort,
    fault: Fault,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    /// The manager is gone when bytes are published; it comes back at the next try.
    GoneAtPublish,
    /// It grants the slot after the right one.
    WrongSlot,
    /// It grants slots that do not exist.
    NoSuchSlot,
}

impl Port for Faulty {
    fn session(&self) -> &Session {
        self.inner.session()
    }
    fn report(&mut self, pages: &[Report], answers: &mut Vec<Answer>) -> Result<(), PortError> {
        self.inner.report(pages, answers)
    }
    fn publish(
        &mut self,
        pages: &[Report],
        bytes: &[Page],
        results: &mut Vec<Publication>,
    ) -> Result<(), PortError> {
        if self.fault == Fault::GoneAtPublish {
            results.clear();
            return Err(PortError::Gone);
        }
        self.inner.publish(pages, bytes, results)?;
        for result in results {
            if let Publication::Granted(slot) = result {
                *slot = match self.fault {
                    Fault::WrongSlot => Slot::new(slot.get() ^ 1),
                    _ => Slot::new(u32::MAX - 7),
                };
            }
        }
        Ok(())
    }
    fn offers(&mut self, offers: &mut Vec<Offer>) -> Result<(), PortError> {
        self.inner.offers(offers)
    }
    fn offers_ready(&self) -> BorrowedFd<'_> {
        self.inner.offers_ready()
    }
    fn withdraw(&mut self, pages: &[Gfn]) -> Result<(), PortError> {
        self.inner.withdraw(pages)
    }
    fn claim(
        &mut self,
        generation: PoolGeneration,
        slots: &[Slot],
        answers: &mut Vec<Answer>,
    ) -> Result<(), PortError> {
        self.inner.claim(generation, slots, answers)
    }

    fn release(&mut self, generation: PoolGeneration, slots: &[Slot]) -> Result<(), PortError> {
        self.inner.release(generation, slots)
    }
    fn reconnect(&mut self, held: &[Slot]) -> Result<Reconnected, PortError> {
        self.fault = Fault::WrongSlot;
        self.inner.reconnect(held)
    }
}

#[test]
fn a_manager_that_fails_or_lies_never_changes_a_page() {
    for fault in [Fault::GoneAtPublish, Fault::WrongSlot, Fault::NoSuchSlot] {
        let manager = manager();
        let (memory, region) = guest(|at| u64::from(at / 2), Options::default());
        let inner = manager.attach(PAGES).unwrap();
        region.connect(Box::new(Faulty { inner, fault })).unwrap();
        (0..6).for_each(|_| region.scan_pass());
        if fault == Fault::GoneAtPublish {
            assert!(region.stats().port_failures > 0);
        }
        assert_pages(&memory, |at| u64::from(at / 2));
    }
}

#[test]
fn pages_of_a_manager_that_is_gone_stay_and_move_to_the_next() {
    let manager = manager();
    let (memory, region) = merged_guest(&manager, options());
    manager.stop();
    (0..2).for_each(|_| region.scan_pass());
    assert_eq!(region.stats().shared, u64::from(PAGES));
    assert_pages(&memory, |at| u64::from(at / 2));
    manager.restart(Domain::new(1 << 16).unwrap());
    // The scanner notices that the manager is gone when it next has something to say.
    memory.write_page(0, &page(9999));
    (0..30).for_each(|_| region.scan_pass());
    let references = manager.with(|domain| domain.sizes().references).unwrap();
    assert!(
        references >= u64::from(PAGES) - 4,
        "{references} references, {:#?}",
        region.stats()
    );
    assert_pages(&memory, |at| if at == 0 { 9999 } else { u64::from(at / 2) });
}

#[test]
fn memory_that_cannot_be_managed_is_refused_with_a_reason() {
    let memory = AnonymousMemory::new(PAGES).unwrap();
    let twice = vec![memory.range(Gfn::new(0)), memory.range(Gfn::new(100))];
    assert!(
        Region::adopt(twice, Options::default())
            .unwrap_err()
            .to_string()
            .contains("overlap")
    );
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE_SIZE as u64).unwrap();
    let (rw, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    // SAFETY: a new mapping that stays; only the region is told of it.
    let range = unsafe {
        let mapped = libc::mmap(std::ptr::null_mut(), PAGE_SIZE, rw, private, file.as_raw_fd(), 0);
        assert_ne!(mapped, libc::MAP_FAILED);
        page_share::MemoryRange::adopt(Gfn::new(0), std::ptr::NonNull::new(mapped.cast()).unwrap(), 1)
    };
    let error = Region::adopt(vec![range], Options::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("only private anonymous memory"), "{error}");
}
