//! Random conversations with a domain, checked step by step against a manager that is nothing but maps.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt;

use page_share::port::{Answer, Offer, Port, Publication, Refusal, Report};
use page_share::{Domain, Gfn, LocalManager, LocalPort, PAGE_SIZE, Page, PageHasher, Slot};
use proptest::prelude::*;

const GUESTS: usize = 3;
const PAGES: u32 = 12;
const POOL: u32 = 4;

/// Contents are one byte repeated: few of them, so that they meet all the time.
type Content = u8;

fn page(content: Content) -> Page {
    [content; PAGE_SIZE]
}

#[derive(Debug, Clone)]
enum Step {
    Report(usize, Vec<(u32, Content)>),
    /// Pages with the content that they are said to have, and the one they are sent with.
    Publish(usize, Vec<(u32, Content, Content)>),
    Fetch(usize),
    Release(usize, Vec<prop::sample::Index>),
    Withdraw(usize, u32),
    Die(usize),
    Reconnect(usize, prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let guest = 0..GUESTS;
    let item = (0..PAGES, 0..7u8);
    let sent = (0..PAGES, 0..7u8, prop_oneof![9 => Just(0u8), 1 => 1..7u8])
        .prop_map(|(gfn, content, forged)| (gfn, content, content ^ forged));
    let some = prop::collection::vec(any::<prop::sample::Index>(), 1..5);
    prop_oneof![
        6 => (guest.clone(), prop::collection::vec(item, 1..6)).prop_map(|(g, p)| Step::Report(g, p)),
        6 => (guest.clone(), prop::collection::vec(sent, 1..6)).prop_map(|(g, p)| Step::Publish(g, p)),
        3 => guest.clone().prop_map(Step::Fetch),
        6 => (guest.clone(), some).prop_map(|(g, s)| Step::Release(g, s)),
        1 => (guest.clone(), 0..PAGES).prop_map(|(g, p)| Step::Withdraw(g, p)),
        1 => guest.clone().prop_map(Step::Die),
        1 => (guest, any::<prop::sample::Index>()).prop_map(|(g, s)| Step::Reconnect(g, s)),
    ]
}

/// The obvious manager.
#[derive(Debug, Default)]
struct Oracle {
    hints: HashMap<Content, (usize, u32)>,
    slots: HashMap<Content, Slot>,
    /// References, guest by guest; those of offers included.
    held: [BTreeMap<Slot, u32>; GUESTS],
    offers: [Vec<(u32, Slot)>; GUESTS],
}

impl Oracle {
    fn references(&self, slot: Slot) -> u32 {
        self.held.iter().filter_map(|held| held.get(&slot)).sum()
    }

    fn hold(&mut self, guest: usize, slot: Slot) {
        *self.held[guest].entry(slot).or_default() += 1;
    }

    fn drop_hint(&mut self, guest: usize, gfn: u32) {
        self.hints.retain(|_, hint| *hint != (guest, gfn));
    }

    fn sweep(&mut self) {
        for held in &mut self.held {
            held.retain(|_, count| *count > 0);
        }
        let gone: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, slot)| self.references(**slot) == 0)
            .collect();
        let gone: Vec<_> = gone.into_iter().map(|(content, _)| *content).collect();
        for content in gone {
            self.slots.remove(&content);
        }
    }

    fn report(&mut self, guest: usize, gfn: u32, content: Content) -> Answer {
        if self.hints.get(&content) == Some(&(guest, gfn)) {
            return Answer::Noted;
        }
        self.drop_hint(guest, gfn);
        if let Some(&slot) = self.slots.get(&content) {
            self.hold(guest, slot);
            return Answer::Shared(slot);
        }
        if self.hints.contains_key(&content) {
            return Answer::Publish;
        }
        self.hints.insert(content, (guest, gfn));
        Answer::Noted
    }

    /// What must come of a publication that claims to be `content`; `granted` is what the domain said, which alone
    /// knows where a new page went.
    fn publish(&mut self, guest: usize, item: (u32, Content, Content), granted: Publication) -> Publication {
        let (gfn, content, bytes) = item;
        if content != bytes {
            return Publication::Refused(Refusal::SketchMismatch);
        }
        if let Some(&slot) = self.slots.get(&content) {
            self.hold(guest, slot);
            return Publication::Granted(slot);
        }
        match self.hints.get(&content).copied() {
            Some((owner, hint)) if (owner, hint) != (guest, gfn) => {
                if self.slots.len() as u32 == POOL {
                    return Publication::Refused(Refusal::PoolFull);
                }
                let Publication::Granted(slot) = granted else {
                    return Publication::Granted(Slot::new(u32::MAX));
                };
                assert!(
                    !self.slots.values().any(|used| *used == slot),
                    "{slot:?} is in use"
                );
                self.drop_hint(guest, gfn);
                self.hints.remove(&content);
                self.slots.insert(content, slot);
                self.hold(guest, slot);
                self.hold(owner, slot);
                self.offers[owner].push((hint, slot));
                granted
            }
            Some(_) => Publication::Noted,
            None => {
                self.drop_hint(guest, gfn);
                self.hints.insert(content, (guest, gfn));
                Publication::Noted
            }
        }
    }
}

/// The domain under test beside its oracle.
struct World {
    manager: LocalManager,
    ports: Vec<LocalPort>,
    hasher: PageHasher,
    oracle: Oracle,
}

impl World {
    fn new() -> Self {
        let manager = LocalManager::new(Domain::new(POOL).unwrap());
        let ports: Vec<_> = (0..GUESTS).map(|_| manager.attach(PAGES).unwrap()).collect();
        let hasher = PageHasher::new(&ports[0].session().key);
        Self {
            manager,
            ports,
            hasher,
            oracle: Oracle::default(),
        }
    }

    fn named(&self, gfn: u32, content: Content) -> Report {
        Report {
            gfn: Gfn::new(gfn),
            sketch: self.hasher.sketch(&page(content)),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Report(guest, pages) => self.report(guest, &pages),
            Step::Publish(guest, pages) => self.publish(guest, &pages),
            Step::Fetch(guest) => self.fetch(guest),
            Step::Release(guest, chosen) => self.release(guest, &chosen),
            Step::Withdraw(guest, gfn) => {
                self.ports[guest].withdraw(&[Gfn::new(gfn)]).unwrap();
                self.oracle.drop_hint(guest, gfn);
            }
            Step::Die(guest) => self.die(guest),
            Step::Reconnect(guest, chosen) => self.reconnect(guest, chosen),
        }
        self.oracle.sweep();
    }

    fn report(&mut self, guest: usize, pages: &[(u32, Content)]) {
        let named: Vec<_> = pages
            .iter()
            .map(|&(gfn, content)| self.named(gfn, content))
            .collect();
        let mut answers = Vec::new();
        self.ports[guest].report(&named, &mut answers).unwrap();
        let expected: Vec<_> = pages
            .iter()
            .map(|&(gfn, content)| self.oracle.report(guest, gfn, content))
            .collect();
        assert_eq!(answers, expected);
    }

    fn publish(&mut self, guest: usize, pages: &[(u32, Content, Content)]) {
        let named: Vec<_> = pages
            .iter()
            .map(|&(gfn, content, _)| self.named(gfn, content))
            .collect();
        let bytes: Vec<_> = pages.iter().map(|&(.., bytes)| page(bytes)).collect();
        let mut results = Vec::new();
        self.ports[guest].publish(&named, &bytes, &mut results).unwrap();
        for (item, result) in pages.iter().zip(results) {
            assert_eq!(result, self.oracle.publish(guest, *item, result));
        }
    }

    fn fetch(&mut self, guest: usize) {
        let mut offers = Vec::new();
        self.ports[guest].offers(&mut offers).unwrap();
        let mut got: Vec<_> = offers
            .iter()
            .map(|&Offer { gfn, slot }| (gfn.get(), slot))
            .collect();
        let mut expected = std::mem::take(&mut self.oracle.offers[guest]);
        assert!(got.is_sorted_by_key(|offer| offer.0));
        got.sort_unstable();
        expected.sort_unstable();
        assert_eq!(got, expected);
    }

    /// Releases what the guest knows it holds: everything but waiting offers.
    fn release(&mut self, guest: usize, chosen: &[prop::sample::Index]) {
        let mut known = self.oracle.held[guest].clone();
        for (_, slot) in &self.oracle.offers[guest] {
            *known.get_mut(slot).unwrap() -= 1;
        }
        let mut known: Vec<Slot> = known
            .into_iter()
            .flat_map(|(slot, count)| vec![slot; count as usize])
            .collect();
        let mut slots = Vec::new();
        for index in chosen {
            if !known.is_empty() {
                slots.push(known.swap_remove(index.index(known.len())));
            }
        }
        let generation = self.ports[guest].session().generation;
        for slot in &slots {
            *self.oracle.held[guest].get_mut(slot).unwrap() -= 1;
        }
        self.ports[guest].release(generation, &slots).unwrap();
        let beyond = Slot::new(slots.first().map_or(0, |slot| slot.get()) + 1000);
        self.ports[guest].release(generation, &[beyond]).unwrap_err();
    }

    fn die(&mut self, guest: usize) {
        let reborn = self.manager.attach(PAGES).unwrap();
        std::mem::replace(&mut self.ports[guest], reborn).retire();
        self.oracle.held[guest].clear();
        self.oracle.offers[guest].clear();
        self.oracle.hints.retain(|_, (owner, _)| *owner != guest);
    }

    /// A lost connection, after which the guest knows of some of its references only.
    fn reconnect(&mut self, guest: usize, chosen: prop::sample::Index) {
        let all: Vec<Slot> = self.oracle.held[guest]
            .iter()
            .flat_map(|(&slot, &count)| vec![slot; count as usize])
            .collect();
        let kept = &all[..chosen.index(all.len() + 1)];
        self.ports[guest].reconnect(kept).unwrap();
        self.oracle.offers[guest].clear();
        self.oracle.hints.retain(|_, (owner, _)| *owner != guest);
        self.oracle.held[guest].clear();
        for &slot in kept {
            self.oracle.hold(guest, slot);
        }
    }

    fn check(&self) {
        let sizes = self.manager.with(|domain| {
            domain.check().unwrap();
            (domain.sizes(), domain.pool_bytes().unwrap())
        });
        let (sizes, pool_bytes) = sizes.unwrap();
        let references: u32 = self.oracle.held.iter().flat_map(|held| held.values()).sum();
        assert_eq!(sizes.hints as usize, self.oracle.hints.len());
        assert_eq!(sizes.pool_pages as usize, self.oracle.slots.len());
        assert_eq!(sizes.references, u64::from(references));
        assert_eq!(
            pool_bytes,
            u64::from(sizes.pool_pages) << 12,
            "unreferenced pages cost nothing"
        );
        for (&content, slot) in &self.oracle.slots {
            let mut bytes = [0; PAGE_SIZE];
            let pool = &self.ports[0].session().pool;
            pool.read_exact_at(&mut bytes, slot.offset()).unwrap();
            assert_eq!(bytes, page(content), "{slot:?} while it has references");
        }
    }
}

proptest! {
    #[test]
    fn a_domain_does_what_maps_would_do(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            world.check();
        }
    }
}
