//! The manager's side as a region meets it: through a port, with pages that are only bytes.

mod contents;

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use contents::page;
use page_share::port::{Answer, Invalid, Offer, Port, PortError, Publication, Reconnected, Refusal, Report};
use page_share::{
    Domain, DomainKey, Gfn, LocalManager, LocalPort, PAGE_SIZE, Page, PageHasher, PoolGeneration, PoolLimit,
    Sketch, Slot,
};

/// A guest whose pages are named by the number that makes their content.
struct Guest {
    port: LocalPort,
    hasher: PageHasher,
}

impl Guest {
    fn attach(manager: &LocalManager, pages: u32) -> Self {
        let port = manager.attach(pages).unwrap();
        let hasher = PageHasher::new(&port.session().key);
        Self { port, hasher }
    }

    fn named(&self, pages: &[(u32, u32)]) -> Vec<Report> {
        let named = |&(gfn, content): &(u32, u32)| Report {
            gfn: Gfn::new(gfn),
            sketch: self.hasher.sketch(&page(content.into())),
        };
        pages.iter().map(named).collect()
    }

    fn report(&mut self, pages: &[(u32, u32)]) -> Vec<Answer> {
        let mut answers = Vec::new();
        let named = self.named(pages);
        self.port.report(&named, &mut answers).unwrap();
        answers
    }

    fn publish(&mut self, pages: &[(u32, u32)]) -> Vec<Publication> {
        let mut all = Vec::new();
        for pages in pages.chunks(page_share::port::PUBLISH_BATCH) {
            let bytes: Vec<Page> = pages.iter().map(|&(_, content)| page(content.into())).collect();
            let mut results = Vec::new();
            let named = self.named(pages);
            self.port.publish(&named, &bytes, &mut results).unwrap();
            all.extend(results);
        }
        all
    }

    fn offers(&mut self) -> Vec<Offer> {
        let mut offers = Vec::new();
        self.port.offers(&mut offers).unwrap();
        offers
    }

    fn release(&mut self, slots: &[Slot]) -> Result<(), PortError> {
        let generation = self.port.session().generation;
        self.port.release(generation, slots)
    }

    fn pool_page(&self, slot: Slot) -> Page {
        let mut page = [0; PAGE_SIZE];
        let pool = &self.port.session().pool;
        pool.read_exact_at(&mut page, slot.offset()).unwrap();
        page
    }
}

fn manager(page_limit: u32) -> LocalManager {
    LocalManager::new(Domain::new(page_limit).unwrap())
}

fn check(manager: &LocalManager) {
    manager.with(|domain| domain.check().unwrap()).unwrap();
}

fn polls_readable(fd: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
}

#[test]
fn the_second_report_publishes_the_hint_is_offered_and_the_third_shares_at_once() {
    let manager = manager(1000);
    let [mut a, mut b, mut c] = [0; 3].map(|_| Guest::attach(&manager, 64));
    let run: Vec<(u32, u32)> = (10..40).map(|gfn| (gfn, gfn * 7)).collect();
    assert!(a.report(&run).iter().all(|answer| *answer == Answer::Noted));
    assert!(
        a.report(&run).iter().all(|answer| *answer == Answer::Noted),
        "still the hint"
    );
    assert!(b.report(&run).iter().all(|answer| *answer == Answer::Publish));
    assert!(!polls_readable(a.port.offers_ready()));
    let granted = b.publish(&run);
    for (place, result) in granted.iter().enumerate() {
        let slot = Slot::new(place as u32);
        assert_eq!(*result, Publication::Granted(slot), "runs stay runs");
        assert_eq!(b.pool_page(slot), page(run[place].1.into()));
    }
    assert!(polls_readable(a.port.offers_ready()));
    let offers = a.offers();
    assert!(!polls_readable(a.port.offers_ready()));
    for (place, offer) in offers.iter().enumerate() {
        let (gfn, slot) = (Gfn::new(run[place].0), Slot::new(place as u32));
        assert_eq!(*offer, Offer { gfn, slot });
    }
    let shared = c.report(&run);
    assert!((0..30).all(|place| shared[place as usize] == Answer::Shared(Slot::new(place))));
    check(&manager);
    let sizes = manager.with(|domain| domain.sizes()).unwrap();
    assert_eq!((sizes.pool_pages, sizes.references, sizes.hints), (30, 90, 0));
}

#[test]
fn equal_pages_of_one_guest_are_shared_too() {
    let manager = manager(1000);
    let mut a = Guest::attach(&manager, 64);
    assert_eq!(a.report(&[(1, 5), (2, 5)]), [Answer::Noted, Answer::Publish]);
    assert_eq!(a.publish(&[(2, 5)]), [Publication::Granted(Slot::new(0))]);
    let slot = Slot::new(0);
    assert_eq!(
        a.offers(),
        [Offer {
            gfn: Gfn::new(1),
            slot
        }]
    );
    assert_eq!(a.report(&[(3, 5)]), [Answer::Shared(slot)]);
    a.release(&[slot, slot]).unwrap();
    assert_eq!(a.pool_page(slot), page(5), "one reference is left");
    a.release(&[slot]).unwrap();
    assert_eq!(a.pool_page(slot), [0; PAGE_SIZE], "punched");
    assert_eq!(a.report(&[(3, 5)]), [Answer::Noted], "and forgotten");
    check(&manager);
}

#[test]
fn a_publisher_who_comes_late_joins_the_winner() {
    let manager = manager(1000);
    let [mut a, mut b, mut c] = [0; 3].map(|_| Guest::attach(&manager, 64));
    a.report(&[(1, 5)]);
    assert_eq!(b.report(&[(1, 5)]), [Answer::Publish]);
    assert_eq!(c.report(&[(1, 5)]), [Answer::Publish]);
    let won = b.publish(&[(1, 5)]);
    assert_eq!(c.publish(&[(1, 5)]), won);
    // The same content twice in one batch, both with the right to publish.
    a.report(&[(9, 6)]);
    let twice = c.publish(&[(10, 6), (11, 6)]);
    assert_eq!(twice[0], twice[1]);
    check(&manager);
}

#[test]
fn a_hint_that_changed_its_content_is_a_hint_for_the_old_one_no_longer() {
    let manager = manager(1000);
    let [mut a, mut b] = [0; 2].map(|_| Guest::attach(&manager, 64));
    a.report(&[(1, 5)]);
    a.report(&[(1, 6)]);
    assert_eq!(b.report(&[(1, 5)]), [Answer::Noted]);
    assert_eq!(b.report(&[(2, 6)]), [Answer::Publish]);
    a.port.withdraw(&[Gfn::new(1), Gfn::new(2)]).unwrap();
    assert_eq!(
        b.publish(&[(2, 6)]),
        [Publication::Noted],
        "nobody else has it any more"
    );
    check(&manager);
}

#[test]
fn bytes_that_do_not_match_their_sketch_never_enter_the_pool() {
    let manager = manager(1000);
    let [mut a, mut b] = [0; 2].map(|_| Guest::attach(&manager, 64));
    a.report(&[(1, 5)]);
    b.report(&[(1, 5)]);
    let forged = b.named(&[(1, 5)]);
    let mut results = Vec::new();
    b.port.publish(&forged, &[page(666)], &mut results).unwrap();
    assert_eq!(results, [Publication::Refused(Refusal::SketchMismatch)]);
    assert!(a.offers().is_empty());
    let (counters, sizes) = manager
        .with(|domain| (domain.counters(), domain.sizes()))
        .unwrap();
    assert_eq!((counters.refused_mismatch, sizes.pool_pages), (1, 0));
    assert_eq!(
        b.report(&[(1, 5)]),
        [Answer::Publish],
        "the content itself is not spoilt"
    );
    check(&manager);
}

#[test]
fn equal_pages_of_two_domains_never_meet() {
    let (one, two) = (manager(1000), manager(1000));
    let (mut a, mut b) = (Guest::attach(&one, 64), Guest::attach(&two, 64));
    assert_ne!(a.hasher.sketch(&page(5)), b.hasher.sketch(&page(5)));
    assert_ne!(a.hasher.hash(&page(5)), b.hasher.hash(&page(5)));
    for guest in [&mut a, &mut b] {
        let everything: Vec<_> = (0..64).map(|gfn| (gfn, gfn + 1)).collect();
        assert!(
            guest
                .report(&everything)
                .iter()
                .all(|answer| *answer == Answer::Noted)
        );
    }
    for manager in [one, two] {
        let sizes = manager.with(|domain| domain.sizes()).unwrap();
        assert_eq!((sizes.hints, sizes.pool_pages), (64, 0));
    }
}

#[test]
fn a_full_pool_says_so_and_recovers() {
    let manager = manager(2);
    let [mut a, mut b] = [0; 2].map(|_| Guest::attach(&manager, 64));
    let run = [(1, 1), (2, 2), (3, 3)];
    a.report(&run);
    b.report(&run);
    let full = Publication::Refused(Refusal::PoolFull);
    let results = b.publish(&run);
    assert_eq!(results[2], full);
    check(&manager);
    assert_eq!(b.publish(&[(3, 3)]), [full]);
    let offers: Vec<Slot> = a.offers().iter().map(|offer| offer.slot).collect();
    a.release(&offers).unwrap();
    b.release(&offers).unwrap();
    assert!(matches!(b.publish(&[(3, 3)])[..], [Publication::Granted(_)]));
    check(&manager);
}

#[test]
fn a_limited_pool_takes_no_more_and_of_one_guest_alone_even_less() {
    let manager = manager(1000);
    let [mut a, mut b] = [0; 2].map(|_| Guest::attach(&manager, 64));
    let limit = |pages, alone| {
        let limit = PoolLimit { pages, alone };
        manager.with(|domain| domain.limit_pool(limit)).unwrap();
    };
    let entered = |results: Vec<Publication>| {
        let granted = |result: &&Publication| matches!(result, Publication::Granted(_));
        results.iter().filter(granted).count()
    };
    // Each content is the guest's own, in two of its pages.
    let twice = |from: u32| (from..from + 4).map(|gfn| (gfn, gfn)).collect::<Vec<_>>();
    let again = |from: u32| (from..from + 4).map(|gfn| (gfn + 32, gfn)).collect::<Vec<_>>();
    limit(6, 2);
    a.report(&twice(0));
    assert_eq!(entered(a.publish(&again(0))), 2);
    // What two guests have still enters.
    b.report(&twice(8));
    a.report(&twice(8));
    assert_eq!(entered(a.publish(&twice(8))), 4);
    b.report(&twice(16));
    assert_eq!(entered(a.publish(&twice(16))), 0);
    check(&manager);
    // What is there stays, and can be joined.
    limit(0, 1000);
    assert!(matches!(b.report(&[(40, 8)])[..], [Answer::Shared(_)]));
    assert_eq!(entered(a.publish(&again(2))), 0);
    limit(1000, 1000);
    assert_eq!(entered(a.publish(&twice(16))), 4);
    assert_eq!(entered(a.publish(&again(2))), 2);
    check(&manager);
    assert_eq!(manager.with(|domain| domain.sizes().pool_pages), Some(12));
}

#[test]
fn impossible_calls_are_refused_whole_and_counted() {
    let manager = manager(1000);
    let [mut a, mut b] = [0; 2].map(|_| Guest::attach(&manager, 64));
    a.report(&[(1, 5)]);
    b.report(&[(1, 5)]);
    let Publication::Granted(slot) = b.publish(&[(1, 5)])[0] else {
        panic!("published");
    };
    let mut answers = vec![Answer::Noted];
    let outside = b.named(&[(2, 7), (64, 5)]);
    let error = b.port.report(&outside, &mut answers);
    assert!(matches!(
        error,
        Err(PortError::Invalid(Invalid::Gfn { pages: 64, .. }))
    ));
    assert!(answers.is_empty());
    assert!(matches!(
        b.release(&[slot, slot]),
        Err(PortError::Invalid(Invalid::NotHeld(named))) if named == slot
    ));
    for wild in [Slot::new(1), Slot::new(u32::MAX)] {
        assert!(matches!(
            b.release(&[wild]),
            Err(PortError::Invalid(Invalid::NotHeld(_)))
        ));
    }
    let stale = PoolGeneration::new(b.port.session().generation.get() ^ 1);
    let error = b.port.release(stale, &[slot]);
    assert!(matches!(error, Err(PortError::StaleGeneration { .. })));
    let flood = vec![outside[0]; page_share::port::REPORT_BATCH + 1];
    let error = b.port.report(&flood, &mut answers);
    assert!(matches!(error, Err(PortError::Invalid(Invalid::Batch { .. }))));
    assert_eq!(manager.with(|domain| domain.counters().invalid_calls), Some(5));
    check(&manager);
    assert_eq!(b.pool_page(slot), page(5));
}

#[test]
fn references_are_bounded_by_the_guests_size() {
    let manager = manager(1000);
    let mut a = Guest::attach(&manager, 4);
    a.report(&[(0, 5), (1, 5)]);
    a.publish(&[(1, 5)]);
    let again = vec![(2, 5); page_share::port::REPORT_BATCH];
    for _ in 0..4 {
        a.report(&again);
    }
    let held = manager.with(|domain| domain.sizes().references).unwrap();
    assert_eq!(held, 4 * 2 + page_share::port::REPORT_BATCH as u64);
    check(&manager);
}

#[test]
fn a_retired_guest_drops_every_reference_and_hint_of_its_own_and_no_others() {
    let manager = manager(10_000);
    let [mut a, mut b, mut c] = [0; 3].map(|_| Guest::attach(&manager, 2000));
    let run: Vec<_> = (0..1000).map(|gfn| (gfn, gfn + 1)).collect();
    a.report(&run);
    b.report(&run);
    b.publish(&run[..500]);
    b.publish(&run[500..600]);
    c.report(&run[..100]);
    b.port.retire();
    check(&manager);
    // The offers that `a` never fetched go with it; what `c` maps stays.
    a.port.retire();
    check(&manager);
    let sizes = manager.with(|domain| domain.sizes()).unwrap();
    assert_eq!((sizes.pool_pages, sizes.references, sizes.hints), (100, 100, 0));
    assert_eq!(sizes.guests, 1);
    assert_eq!(
        manager.with(|domain| domain.pool_bytes().unwrap()),
        Some(100 << 12)
    );
    assert_eq!(c.pool_page(Slot::new(99)), page(100));
}

#[test]
fn a_dropped_port_keeps_what_may_be_mapped_and_nothing_else() {
    let manager = manager(100);
    let guests = || manager.with(|domain| (domain.sizes().guests, domain.sizes().references));
    let [mut a, mut b] = [0; 2].map(|_| Guest::attach(&manager, 8));
    a.report(&[(1, 5), (2, 6)]);
    b.report(&[(1, 5)]);
    let Publication::Granted(slot) = b.publish(&[(1, 5)])[0] else {
        panic!("published");
    };
    assert_eq!(guests(), Some((2, 2)));
    // It never saw its offer, so that it holds nothing.
    drop(a);
    check(&manager);
    assert_eq!(guests(), Some((1, 1)));
    // This one may have mapped the slot.
    let pool = b.port.session().pool.clone();
    drop(b);
    check(&manager);
    assert_eq!(guests(), Some((1, 1)));
    let mut bytes = [0; PAGE_SIZE];
    pool.read_exact_at(&mut bytes, slot.offset()).unwrap();
    assert_eq!(bytes, page(5));
}

#[test]
fn a_lost_manager_is_an_error_its_pool_stays_readable_and_a_new_one_is_found() {
    let manager = manager(1000);
    let mut a = Guest::attach(&manager, 64);
    a.report(&[(1, 5), (2, 5)]);
    let Publication::Granted(slot) = a.publish(&[(2, 5)])[0] else {
        panic!("published");
    };
    let old = a.port.session().clone();
    manager.stop();
    assert!(matches!(a.port.offers(&mut Vec::new()), Err(PortError::Gone)));
    assert!(matches!(a.port.reconnect(&[slot]), Err(PortError::Gone)));
    manager.restart(Domain::new(1000).unwrap());
    assert!(
        matches!(a.port.offers(&mut Vec::new()), Err(PortError::Gone)),
        "not by itself"
    );
    assert_eq!(a.port.reconnect(&[slot]).unwrap(), Reconnected::FreshPool);
    let session = a.port.session();
    assert_ne!(session.generation, old.generation);
    assert_ne!(session.key, old.key);
    let mut kept = [0; PAGE_SIZE];
    old.pool.read_exact_at(&mut kept, slot.offset()).unwrap();
    assert_eq!(kept, page(5));
    let error = a.port.release(old.generation, &[slot]);
    assert!(matches!(error, Err(PortError::StaleGeneration { .. })));
}

#[test]
fn a_guest_that_was_cut_off_states_what_it_holds() {
    let manager = manager(1000);
    let [mut a, mut b] = [0; 2].map(|_| Guest::attach(&manager, 64));
    a.report(&[(1, 5), (2, 6)]);
    b.report(&[(1, 5), (2, 6)]);
    let granted = b.publish(&[(1, 5), (2, 6)]);
    assert_eq!(granted.len(), 2);
    // The answer to this call never reached `b`, and `a` never fetched its offers.
    b.report(&[(3, 5)]);
    let kept = Slot::new(0);
    assert_eq!(b.port.reconnect(&[kept]).unwrap(), Reconnected::SamePool);
    assert_eq!(a.port.reconnect(&[]).unwrap(), Reconnected::SamePool);
    assert!(a.offers().is_empty());
    check(&manager);
    let sizes = manager.with(|domain| domain.sizes()).unwrap();
    assert_eq!((sizes.pool_pages, sizes.references), (1, 1));
    let error = b.port.reconnect(&[kept, kept]);
    assert!(matches!(error, Err(PortError::Invalid(Invalid::NotHeld(_)))));
}

#[test]
fn an_audit_finds_a_page_that_somebody_changed() {
    let manager = manager(1000);
    let mut a = Guest::attach(&manager, 64);
    a.report(&[(1, 5), (2, 5), (3, 6), (4, 6)]);
    a.publish(&[(2, 5), (4, 6)]);
    let audit = |domain: &mut Domain| domain.audit(Slot::new(0), u32::MAX).unwrap();
    assert!(manager.with(audit).unwrap().is_empty());
    // As root the mode of the memfd is no obstacle; for any other user the audit has nothing to find.
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", a.port.session().pool.as_raw_fd());
    if let Ok(writer) = std::fs::File::options().write(true).open(path) {
        writer.write_all_at(b"!", Slot::new(1).offset() + 17).unwrap();
        assert_eq!(manager.with(audit).unwrap(), [Slot::new(1)]);
    }
}

#[test]
fn a_given_key_gives_the_same_names() {
    let key = DomainKey::from_bytes([9; 32]);
    let sketch = |key: &DomainKey| PageHasher::new(key).sketch(&page(1));
    assert_eq!(sketch(&key), sketch(&key.clone()));
    assert_ne!(sketch(&key), Sketch::new(0));
}

#[test]
fn a_claim_gets_slots_that_are_in_use_and_no_others() {
    let manager = manager(100);
    let (mut one, mut two) = (Guest::attach(&manager, 10), Guest::attach(&manager, 10));
    one.report(&[(0, 1), (1, 2)]);
    two.report(&[(0, 1), (1, 2)]);
    two.publish(&[(0, 1), (1, 2)]);
    let mut three = Guest::attach(&manager, 10);
    let generation = three.port.session().generation;
    let slots = [1, 0, 2, 63, u32::MAX].map(Slot::new);
    let mut answers = Vec::new();
    three.port.claim(generation, &slots, &mut answers).unwrap();
    let shared = |slot| Answer::Shared(Slot::new(slot));
    let noted = Answer::Noted;
    assert_eq!(answers, [shared(1), shared(0), noted, noted, noted]);
    check(&manager);
    three.release(&slots[..2]).unwrap();
    assert!(
        three.release(&slots[..1]).is_err(),
        "every claim is one reference"
    );
    check(&manager);
    let other = PoolGeneration::new(generation.get() ^ 1);
    let error = three.port.claim(other, &slots, &mut answers).unwrap_err();
    assert!(matches!(error, PortError::StaleGeneration { .. }), "{error}");
    assert!(answers.is_empty());
    let many = vec![Slot::new(0); page_share::port::REPORT_BATCH + 1];
    let error = three.port.claim(generation, &many, &mut answers).unwrap_err();
    assert!(
        matches!(error, PortError::Invalid(Invalid::Batch { .. })),
        "{error}"
    );
    // A guest gets no more references than it can use.
    let some = vec![Slot::new(0); page_share::port::REPORT_BATCH];
    three.port.claim(generation, &some, &mut answers).unwrap();
    three.port.claim(generation, &some, &mut answers).unwrap();
    assert_eq!(answers.iter().filter(|answer| **answer != noted).count(), 20);
    check(&manager);
}

/// Nothing that only the victim has may enter the pool, whatever sketches an attacker makes up: not even those that
/// agree with the victim's in 46 bits, as a flood of them is sure to bring about.
#[test]
fn a_flood_of_made_up_sketches_brings_no_page_of_another_guest_into_the_pool() {
    const SECRETS: u32 = 4000;
    let manager = manager(10_000);
    let [mut attacker, mut victim] = [0; 2].map(|_| Guest::attach(&manager, SECRETS * 16));
    let secrets: Vec<(u32, u32)> = (0..SECRETS).map(|gfn| (gfn, 1_000_000 + gfn)).collect();
    let named = victim.named(&secrets);
    let mut answers = Vec::new();
    for (round, low) in (0..16).zip([1u64, 2, 3, 0x3_ffff, 0x2_0000, 0x1_5555].into_iter().cycle()) {
        let alike = |report: &Report| Report {
            gfn: Gfn::new(report.gfn.get() + round * SECRETS),
            // The last few differ in one of the upper bits.
            sketch: Sketch::new(report.sketch.get() ^ if round < 12 { low } else { 1 << (round * 4) }),
        };
        let flood: Vec<Report> = named.iter().map(alike).collect();
        attacker.port.report(&flood, &mut answers).unwrap();
    }
    assert_eq!(
        manager.with(|domain| domain.sizes().hints),
        Some(u64::from(SECRETS) * 10)
    );
    victim.port.report(&named, &mut answers).unwrap();
    let asked = answers.iter().filter(|answer| **answer != Answer::Noted).count();
    assert_eq!(asked, 0, "of {SECRETS} pages that no other guest has");
    // Published all the same, they stay the victim's.
    let published = victim.publish(&secrets);
    assert!(published.iter().all(|result| *result == Publication::Noted));
    assert!(attacker.offers().is_empty());
    check(&manager);
    assert_eq!(manager.with(|domain| domain.sizes().pool_pages), Some(0));
}
