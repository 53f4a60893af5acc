//! A sharing domain under guests' processes that forge sketches, bytes, page numbers and slots.

use page_share::port::{
    Answer, Invalid, Offer, PUBLISH_BATCH, PortError, Publication, REPORT_BATCH, Refusal, Report,
};
use page_share::{
    Attachment, Domain, DomainKey, Gfn, LocalGuest, PAGE_SIZE, Page, PageHasher, PoolGeneration, Sketch, Slot,
};

use crate::{Signature, Target, Worker};

pub(crate) const TARGET: Target = Target {
    name: "share-domain",
    about: "content index and pool references under forged sketches, bytes and slots",
    longest: 240,
    seeds,
    worker,
};

const GUESTS: usize = 3;
const CONTENTS: u8 = 8;
const KEY: [u8; 32] = [3; 32];

/// Under [`KEY`], pages with this second word have the same sketch whatever their first word is.
const CANCEL: u64 = 0x3d4a_2e9f_f3b4_bdd6;

/// One call: what, who, and three operands.
const CALL: usize = 4;

fn worker() -> Worker {
    // In the small one everything is soon full; only the large one has room for a series.
    let mut stages = [DomainStage::new(24, 6), DomainStage::new(96, 200)];
    Box::new(move |input: &[u8]| {
        let (&size, calls) = input.split_first().unwrap_or((&0, &[]));
        stages[usize::from(size % 2)].run(calls)
    })
}

/// What calls came to: every way in which the domain answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Noted,
    Publish,
    Shared,
    BadPage,
    LongBatch,
    Superseded,
    Granted,
    BecameHint,
    PoolFull,
    Mismatch,
    Collision,
    Offered,
    Released,
    NotHeld,
    Stale,
    Withdrawn,
    Restated,
    Claimed,
    ClaimedInVain,
    Series,
}

const SEEN: usize = Seen::Series as usize + 1;

struct DomainStage {
    domain: Domain,
    contents: Vec<Page>,
    names: Vec<Sketch>,
    generation: PoolGeneration,
    pages: u32,
    pool: u32,
    guests: Vec<LocalGuest>,
    counts: [u64; SEEN],
}

impl DomainStage {
    /// A domain of guests with `pages` pages and a pool of `pool`.
    fn new(pages: u32, pool: u32) -> Self {
        let key = DomainKey::from_bytes(KEY);
        let hasher = PageHasher::new(&key);
        let contents: Vec<Page> = (0..CONTENTS).map(content).collect();
        let mut domain = Domain::with_key(key, pool).expect("memfds can be made");
        let somebody = domain.attach(pages).expect("eventfds can be made");
        let generation = domain
            .session(somebody.attachment())
            .expect("attached")
            .generation;
        domain.retire(somebody);
        Self {
            domain,
            generation,
            names: contents.iter().map(|page| hasher.sketch(page)).collect(),
            contents,
            pages,
            pool,
            guests: Vec::new(),
            counts: [0; SEEN],
        }
    }

    fn run(&mut self, calls: &[u8]) -> Signature {
        self.counts = [0; SEEN];
        self.guests = (0..GUESTS).map(|_| self.attach()).collect();
        for call in calls.chunks_exact(CALL) {
            let guest = call[0] as usize / 16 % GUESTS;
            self.call(guest, call[0] % 16, [call[1], call[2], call[3]]);
            self.check();
        }
        for guest in std::mem::take(&mut self.guests) {
            self.domain.retire(guest);
        }
        self.check();
        let sizes = self.domain.sizes();
        assert_eq!(
            (sizes.hints, sizes.pool_pages, sizes.references),
            (0, 0, 0),
            "the dead leave nothing"
        );
        assert_eq!(self.domain.pool_bytes().expect("fstat works"), 0);
        Signature::of(self.counts.into_iter().chain([u64::from(self.pool)]))
    }

    fn attach(&mut self) -> LocalGuest {
        self.domain.attach(self.pages).expect("eventfds can be made")
    }

    fn saw(&mut self, seen: Seen) {
        self.counts[seen as usize] += 1;
    }

    /// The sketch of a content, or one that differs from it in one bit.
    fn sketch(&self, operand: u8) -> Sketch {
        let name = self.names[(operand % CONTENTS) as usize].get();
        Sketch::new(match operand / CONTENTS {
            0..16 => name,
            forged @ 16..24 => name ^ 1 << (forged - 16),
            forged => name ^ 1 << (forged + 6),
        })
    }

    fn call(&mut self, guest: usize, what: u8, [a, b, c]: [u8; 3]) {
        let from = self.guests[guest].attachment();
        match what {
            0..15 => self.ask(from, what, [a, b, c]),
            // Another guest gets its number, perhaps at once; a call that was on its way comes after that.
            _ => {
                let reborn = self.attach();
                let dead = std::mem::replace(&mut self.guests[guest], reborn);
                self.domain.retire(dead);
                let references = self.domain.sizes();
                self.ask(from, a % 15, [a, b, c]);
                assert_eq!(self.domain.sizes(), references, "the dead change nothing");
            }
        }
    }

    fn ask(&mut self, guest: Attachment, what: u8, [a, b, c]: [u8; 3]) {
        match what {
            0..3 => self.report(guest, &[self.named(a, b), self.named(a ^ 1, c)]),
            3 => self.report_many(guest, a, b, c),
            4..8 => self.publish(guest, &[(a, b, b), (a ^ 1, c, c)]),
            // Bytes and names that need not fit.
            8 => self.publish(
                guest,
                &[(a, b, c); PUBLISH_BATCH + 1][..1 + usize::from(c) % 2 * PUBLISH_BATCH],
            ),
            9 => self.offers(guest),
            10 | 11 => self.release(guest, &self.slots(a, b), c),
            12 => self.withdraw(guest, &vec![self.page(a); length(b)]),
            13 => self.restate(guest, &self.slots(a, b)),
            _ => self.claim(guest, &self.slots(a, b), c),
        }
    }

    /// A page, one in a hundred beyond the last.
    fn page(&self, operand: u8) -> Gfn {
        Gfn::new(u32::from(operand) % (self.pages + 1))
    }

    fn named(&self, page: u8, content: u8) -> Report {
        Report {
            gfn: self.page(page),
            sketch: self.sketch(content),
        }
    }

    /// Slots from `first` on, or one of them again and again, some of them beyond the pool.
    fn slots(&self, first: u8, how: u8) -> Vec<Slot> {
        let step = u32::from(how) / 8 % 2;
        let numbers = (0..length(how) as u32).map(|at| (u32::from(first) + at * step) % (self.pool + 2));
        numbers.map(Slot::new).collect()
    }

    /// The pool's generation, or another one.
    fn generation_of(&self, operand: u8) -> PoolGeneration {
        match operand {
            0..224 => self.generation,
            _ => PoolGeneration::new(self.generation.get() ^ u64::from(operand)),
        }
    }

    /// What every refusal has in common; `false` for none.
    fn refused(&mut self, from: Attachment, outcome: Result<(), PortError>) -> bool {
        let Err(error) = outcome else { return false };
        self.saw(match error {
            PortError::Invalid(Invalid::Batch { count, limit }) => {
                assert!(count > limit);
                Seen::LongBatch
            }
            PortError::Invalid(Invalid::Gfn { gfn, pages }) => {
                assert!(gfn.get() >= pages);
                Seen::BadPage
            }
            PortError::Invalid(Invalid::NotHeld(_)) => Seen::NotHeld,
            PortError::Superseded(named) => {
                assert_eq!(named, from.guest());
                assert!(self.guests.iter().all(|known| known.attachment() != from));
                Seen::Superseded
            }
            PortError::StaleGeneration { slots, session } => {
                assert_ne!(slots, session);
                Seen::Stale
            }
            error => panic!("a call cannot fail like this: {error}"),
        });
        true
    }

    fn report(&mut self, guest: Attachment, pages: &[Report]) {
        let mut answers = Vec::new();
        let outcome = self.domain.report(guest, pages, &mut answers);
        if self.refused(guest, outcome) {
            return assert!(answers.is_empty());
        }
        assert_eq!(answers.len(), pages.len());
        for answer in answers {
            self.saw(match answer {
                Answer::Noted => Seen::Noted,
                Answer::Publish => Seen::Publish,
                Answer::Shared(_) => Seen::Shared,
            });
        }
        let sizes = self.domain.sizes();
        if sizes.pool_pages > u32::from(CONTENTS) {
            self.saw(Seen::Series);
        }
    }

    /// Pages side by side, all with one content: what makes a series.
    fn report_many(&mut self, guest: Attachment, first: u8, content: u8, how: u8) {
        let page = |at: usize| Gfn::new((u32::from(first) + at as u32) % self.pages);
        let sketch = self.sketch(content);
        let pages: Vec<Report> = (0..length(how))
            .map(|at| Report {
                gfn: page(at),
                sketch,
            })
            .collect();
        self.report(guest, &pages);
    }

    /// Each page with the content that it is said to have and the one that it has.
    fn publish(&mut self, guest: Attachment, pages: &[(u8, u8, u8)]) {
        let named: Vec<Report> = pages
            .iter()
            .map(|&(page, name, _)| self.named(page, name))
            .collect();
        let is = |bytes: u8| usize::from(bytes % CONTENTS);
        let bytes: Vec<Page> = pages
            .iter()
            .map(|&(_, _, bytes)| self.contents[is(bytes)])
            .collect();
        let mut results = Vec::new();
        let outcome = self.domain.publish(guest, &named, &bytes, &mut results);
        if self.refused(guest, outcome) {
            return assert!(results.is_empty());
        }
        assert_eq!(results.len(), pages.len());
        for ((result, report), (_, _, bytes)) in results.into_iter().zip(&named).zip(pages) {
            let honest = self.names[is(*bytes)] == report.sketch;
            assert!(
                honest || matches!(result, Publication::Refused(_)),
                "forged bytes entered: {result:?}"
            );
            self.saw(match result {
                Publication::Granted(_) => Seen::Granted,
                Publication::Noted => Seen::BecameHint,
                Publication::Refused(Refusal::PoolFull) => Seen::PoolFull,
                Publication::Refused(Refusal::SketchMismatch) => Seen::Mismatch,
                Publication::Refused(Refusal::Collision) => Seen::Collision,
            });
        }
    }

    fn offers(&mut self, guest: Attachment) {
        let mut offers: Vec<Offer> = Vec::new();
        let outcome = self.domain.offers(guest, &mut offers);
        if !self.refused(guest, outcome) {
            assert!(offers.iter().all(|offer| offer.gfn.get() < self.pages));
            self.counts[Seen::Offered as usize] += offers.len() as u64;
        }
    }

    fn release(&mut self, guest: Attachment, slots: &[Slot], how: u8) {
        let before = self.domain.sizes().references;
        let outcome = self.domain.release(guest, self.generation_of(how), slots);
        let refused = self.refused(guest, outcome);
        let given = if refused { 0 } else { slots.len() as u64 };
        assert_eq!(self.domain.sizes().references, before - given, "all or nothing");
        if !refused {
            self.saw(Seen::Released);
        }
    }

    fn withdraw(&mut self, guest: Attachment, pages: &[Gfn]) {
        let outcome = self.domain.withdraw(guest, pages);
        if !self.refused(guest, outcome) {
            self.saw(Seen::Withdrawn);
        }
    }

    fn restate(&mut self, guest: Attachment, held: &[Slot]) {
        let outcome = self.domain.restate(guest, held);
        if !self.refused(guest, outcome) {
            self.saw(Seen::Restated);
        }
    }

    fn claim(&mut self, guest: Attachment, slots: &[Slot], how: u8) {
        let before = self.domain.sizes();
        let mut answers = Vec::new();
        let outcome = self
            .domain
            .claim(guest, self.generation_of(how), slots, &mut answers);
        let refused = self.refused(guest, outcome);
        assert_eq!(answers.len(), if refused { 0 } else { slots.len() });
        let mut granted = 0;
        for (answer, &slot) in answers.into_iter().zip(slots) {
            match answer {
                Answer::Shared(named) => {
                    assert_eq!(named, slot);
                    granted += 1;
                    self.saw(Seen::Claimed);
                }
                Answer::Noted => self.saw(Seen::ClaimedInVain),
                Answer::Publish => panic!("a claim names no content"),
            }
        }
        let after = self.domain.sizes();
        assert_eq!(after.references, before.references + granted);
        assert_eq!(after.pool_pages, before.pool_pages, "a claim makes no page");
    }

    fn check(&self) {
        if let Err(broken) = self.domain.check() {
            panic!("{broken}");
        }
        let sizes = self.domain.sizes();
        assert!(sizes.pool_pages <= self.pool);
        assert!(sizes.hints <= u64::from(self.pages) * GUESTS as u64);
        // As many as it could map twice, and what one publication may add.
        let most = u64::from(self.pages) * 2 + (REPORT_BATCH + PUBLISH_BATCH) as u64;
        assert!(
            sizes.references <= most * GUESTS as u64,
            "{} references",
            sizes.references
        );
        let damaged = self
            .domain
            .audit(Slot::new(0), 2 * self.pool + 600)
            .expect("the pool is readable");
        assert!(damaged.is_empty(), "{damaged:?} hold what they should not");
    }
}

/// The last two have one sketch, as a process that knows the key can make them.
fn content(number: u8) -> Page {
    let mut page = [number; PAGE_SIZE];
    if number + 2 >= CONTENTS {
        page = [0; PAGE_SIZE];
        page[0] = number;
        page[8..16].copy_from_slice(&CANCEL.to_le_bytes());
    }
    page
}

/// How many items a call has.
fn length(operand: u8) -> usize {
    [1, 2, 3, 0, 16, 64, REPORT_BATCH, REPORT_BATCH + 1][usize::from(operand % 8)]
}

/// Conversations that go well, and one of each call; in the small domain and in the large one.
fn seeds() -> Vec<Vec<u8>> {
    let well = [
        0, 1, 1, 2, 16, 1, 1, 2, 20, 1, 1, 2, 9, 0, 0, 0, 32, 1, 1, 2, 14, 0, 1, 0, 26, 0, 0, 2,
    ];
    let each: Vec<u8> = (0..16).flat_map(|what| [what, 2, 3, 4]).collect();
    // Content 1 enters the pool and fills page after page of every guest; so do its copies.
    let series = [
        0, 1, 1, 1, 16, 1, 1, 1, 20, 1, 1, 1, 3, 0, 1, 5, 19, 0, 1, 5, 35, 0, 1, 5, 3, 0, 1, 5, 19, 0, 1, 5,
        35, 0, 1, 5, 3, 0, 1, 5, 14, 0, 13, 0, 30, 0, 13, 0, 15, 3, 1, 5,
    ];
    // Content 6 is in the pool when its twin is published.
    let twins = [0, 1, 6, 6, 16, 1, 6, 6, 20, 1, 6, 6, 36, 3, 7, 7];
    let conversations: [&[u8]; 4] = [&well, &each, &series, &twins];
    let of_size = |size| conversations.map(|calls| [&[size], calls].concat());
    [0, 1].into_iter().flat_map(of_size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::inputs;

    #[test]
    fn twins_have_one_sketch_and_two_hashes() {
        let hasher = PageHasher::new(&DomainKey::from_bytes(KEY));
        let [one, other] = [6, 7].map(content);
        assert_ne!(one, other);
        assert_eq!(hasher.sketch(&one), hasher.sketch(&other));
        assert_ne!(hasher.hash(&one), hasher.hash(&other));
    }

    #[test]
    fn every_answer_of_a_domain_comes_up() {
        let mut stages = [DomainStage::new(24, 6), DomainStage::new(96, 200)];
        let mut totals = [0; SEEN];
        for input in inputs(seeds(), TARGET.longest).take(600) {
            let Some((&size, calls)) = input.split_first() else {
                continue;
            };
            let stage = &mut stages[usize::from(size % 2)];
            stage.run(calls);
            for (total, count) in totals.iter_mut().zip(stage.counts) {
                *total += count;
            }
        }
        println!("{totals:?}");
        assert!(totals.iter().all(|&total| total > 0), "{totals:?}");
    }
}
