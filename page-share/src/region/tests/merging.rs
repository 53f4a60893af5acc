//! What is equal is merged, and every reference goes back.

use std::time::{Duration, Instant};

use super::{guest_with, merged, page};
use crate::region::engine::lock;
use crate::{
    AnonymousMemory, Domain, Gfn, LocalManager, Options, PAGE_SIZE, PageRun, PoolLimit, Region, State,
};

#[test]
fn equal_pages_of_two_guests_are_merged_and_read_the_same() {
    const PAGES: u32 = 2000;
    let manager = LocalManager::new(Domain::new(1 << 20).unwrap());
    let guests: Vec<_> = (0..2)
        .map(|_| {
            let memory = AnonymousMemory::new(PAGES).unwrap();
            for at in 0..PAGES {
                if at % 10 != 9 {
                    memory.write_page(at, &page(u64::from(at)));
                } else {
                    memory.store(at as usize * PAGE_SIZE, 0);
                }
            }
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
            region
                .connect(Box::new(manager.attach(region.page_limit()).unwrap()))
                .unwrap();
            (memory, region)
        })
        .collect();
    for _ in 0..3 {
        for (_, region) in &guests {
            region.scan_pass();
        }
    }
    for (memory, region) in &guests {
        let stats = region.stats();
        assert_eq!(stats.shared, 1800, "{stats:#?}");
        assert_eq!(stats.zero, 200, "{stats:#?}");
        for at in 0..PAGES {
            let expected = if at % 10 == 9 {
                [0; PAGE_SIZE]
            } else {
                page(u64::from(at))
            };
            assert_eq!(memory.read_page(at), expected, "page {at}");
        }
    }
    let (memory, region) = &guests[0];
    memory.write_page(5, &page(12345));
    for _ in 0..10 {
        region.scan_pass();
    }
    assert_eq!(region.state(Gfn::new(5)), State::Private);
    assert_eq!(memory.read_page(5), page(12345));
    assert_eq!(guests[1].0.read_page(5), page(5));
    for (_, region) in guests {
        drop(region);
    }
    manager.with(|domain| domain.check().unwrap());
}

#[test]
fn pages_that_a_full_pool_refused_are_merged_once_it_has_room() {
    const PAGES: u32 = 200;
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    let limit = |pages| {
        let limit = PoolLimit { pages, alone: pages };
        manager.with(|domain| domain.limit_pool(limit)).unwrap();
    };
    limit(10);
    let memory = AnonymousMemory::new(PAGES).unwrap();
    (0..PAGES).for_each(|at| memory.write_page(at, &page(u64::from(at / 2))));
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
    let port = manager.attach(region.page_limit()).unwrap();
    region.connect(Box::new(port)).unwrap();
    (0..4).for_each(|_| region.scan_pass());
    assert_eq!(region.stats().shared, 20);
    // Not pages that were written lately: they may be reclaimed meanwhile.
    assert_eq!(
        lock(&region.engine)
            .reclaimer()
            .cold_pages(PAGES, Gfn::new(0))
            .iter()
            .map(|run| run.count)
            .sum::<u32>(),
        180
    );
    limit(1 << 10);
    let began = Instant::now();
    while region.stats().shared < u64::from(PAGES) {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", region.stats());
        std::thread::sleep(Duration::from_millis(50));
        region.scan_pass();
    }
    (0..PAGES).for_each(|at| assert_eq!(memory.read_page(at), page(u64::from(at / 2))));
}

#[test]
fn an_old_pool_is_let_go_when_its_last_page_has_moved() {
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    let guests = merged(&manager, 300);
    let old = guests.iter().map(|(_, region)| {
        let scanner = region.scanner();
        std::sync::Arc::downgrade(&scanner.session().unwrap().pool)
    });
    let old = old.collect::<Vec<_>>().swap_remove(0);
    manager.stop();
    guests.iter().for_each(|(_, region)| region.scan_pass());
    assert!(old.upgrade().is_some(), "still mapped");
    manager.restart(Domain::new(1 << 10).unwrap());
    let pass = || (0..8).for_each(|_| guests.iter().for_each(|(_, region)| region.scan_pass()));
    // Pages on their way cost memory twice. Where growth waits there is none.
    guests.iter().for_each(|(_, region)| region.close_gate());
    pass();
    for (_, region) in &guests {
        assert_eq!((region.stats().shared, region.pools().len()), (300, 2));
    }
    assert_eq!(manager.with(|domain| domain.sizes().pool_pages), Some(0));
    guests.iter().for_each(|(_, region)| region.open_gate());
    pass();
    for (memory, region) in &guests {
        assert_eq!(region.stats().shared, 300, "merged anew");
        (0..300).for_each(|at| assert_eq!(memory.read_page(at), page(u64::from(at))));
    }
    assert!(
        old.upgrade().is_none(),
        "nobody holds the old pool's memory any more"
    );
}

#[test]
fn a_region_that_ends_hands_back_what_it_was_granted_and_never_mapped() {
    const PAGES: u32 = 400;
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    let guests: Vec<_> = (0..2)
        .map(|_| {
            let memory = AnonymousMemory::new(PAGES).unwrap();
            (0..PAGES).for_each(|at| memory.write_page(at, &page(u64::from(at % 200))));
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
            let port = manager.attach(region.page_limit()).unwrap();
            region.connect(Box::new(port)).unwrap();
            (memory, region)
        })
        .collect();
    // The first finds twins of its own and has offers waiting for it from the second; neither has mapped all yet.
    for (_, region) in guests.iter().chain(&guests) {
        while !region.scan_step(1).pass_finished && region.stats().shared == 0 {}
    }
    assert!(manager.with(|domain| domain.sizes().references).unwrap() > 0);
    for (memory, region) in guests {
        drop(region);
        (0..PAGES).for_each(|at| assert_eq!(memory.read_page(at), page(u64::from(at % 200))));
    }
    let sizes = manager.with(|domain| domain.sizes()).unwrap();
    assert_eq!((sizes.references, sizes.pool_pages), (0, 0));
}

#[test]
fn a_page_that_two_guests_were_told_of_is_shared_before_either_pass_ends() {
    const PAGES: u32 = 4096;
    let manager = LocalManager::new(Domain::new(1 << 20).unwrap());
    let guests: Vec<_> = (0..2u64)
        .map(|guest| {
            let memory = AnonymousMemory::new(PAGES).unwrap();
            (0..PAGES).for_each(|at| memory.write_page(at, &page(u64::from(at) << 8 | guest)));
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
            region
                .connect(Box::new(manager.attach(region.page_limit()).unwrap()))
                .unwrap();
            (memory, region)
        })
        .collect();
    // The same ten blocks of a disk, read to different places.
    for (guest, first) in [(0, 100), (1, 3000)] {
        let (memory, region) = &guests[guest];
        (0..10).for_each(|block| memory.write_page(first + block, &page(1 << 40 | u64::from(block))));
        region.prioritize(PageRun::new(Gfn::new(first), 10));
        for _ in 0..4 {
            region.scan_step(1);
        }
    }
    let second = guests[1].1.stats();
    assert_eq!((second.shared, second.shared_by_hint, second.passes), (10, 10, 0));
    assert_eq!(second.pages_hinted, 20, "each is armed first and read then");
    for block in 0..10 {
        assert_eq!(
            guests[1].0.read_page(3000 + block),
            page(1 << 40 | u64::from(block))
        );
    }
    // The first hears of it with the offers at the end of its pass.
    guests[0].1.scan_pass();
    guests[0].1.scan_pass();
    assert_eq!(guests[0].1.stats().shared, 10);
}

#[test]
fn pages_between_equal_pages_are_guessed_and_a_wrong_guess_is_made_once() {
    let manager = LocalManager::new(Domain::new(1 << 20).unwrap());
    let odd = |at: u32| at % 16 == 7;
    let contents: [&dyn Fn(u32) -> u64; 4] = [
        &|at| u64::from(at),
        &|at| u64::from(at),
        &|at| u64::from(at),
        // Two guests' pages agree at both ends of each guess, and one between differs.
        &|at| u64::from(at) + if odd(at) { 1000 } else { 0 },
    ];
    let mut guests = Vec::new();
    for content in contents {
        let (memory, region) = guest_with(&manager, content);
        guests.push((memory, region));
        for _ in 0..3 {
            guests.iter().for_each(|(_, region)| region.scan_pass());
        }
    }
    let stats: Vec<_> = guests.iter().map(|(_, region)| region.stats()).collect();
    let claimed = manager.with(|domain| domain.counters().claimed).unwrap();
    assert!(claimed > 900, "{claimed}");
    assert_eq!(
        (stats[1].pages_hashed, stats[2].pages_hashed),
        (512, 33),
        "{stats:#?}"
    );
    assert_eq!(stats[3].pages_differed, 32, "{:#?}", stats[3]);
    assert_eq!(stats[3].shared, 480, "{:#?}", stats[3]);
    for _ in 0..6 {
        guests[3].1.scan_pass();
    }
    let after = guests[3].1.stats();
    assert_eq!(after.pages_differed, 32, "{after:#?}");
    assert_eq!(after.pages_hashed, 33 + 32, "{after:#?}");
    for ((memory, _), content) in guests.iter().zip(contents) {
        for at in 0..512 {
            assert_eq!(memory.read_page(at), page(content(at)), "page {at}");
        }
    }
    for (_, region) in &guests {
        region.unshare_all();
    }
    drop(guests);
    manager.with(|domain| domain.check().unwrap());
}

#[test]
fn copies_come_home_while_the_scan_waits_for_its_manager() {
    let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
    let guests = merged(&manager, 64);
    let (memory, region) = &guests[0];
    region.exclude(PageRun::new(Gfn::new(3), 1));
    (0..40).for_each(|at| memory.write_page(at, &page(1000 + u64::from(at))));
    // Held for as long as a manager does not answer.
    let scanner = region.scanner();
    assert_eq!(region.rehome_broken(1), 39);
    assert_eq!(region.rehome_broken(u32::MAX), 0);
    drop(scanner);
    let stats = region.stats();
    assert_eq!((stats.private, stats.shared, stats.broken), (40, 24, 0));
    assert_eq!(stats.cow_breaks, 39);
    assert_eq!(region.victims(64).iter().map(|run| run.count).sum::<u32>(), 39);
    (0..64).for_each(|at| {
        let written = if at < 40 { 1000 } else { 0 };
        assert_eq!(memory.read_page(at), page(written + u64::from(at)));
    });
    manager.with(|domain| domain.check().unwrap());
}
