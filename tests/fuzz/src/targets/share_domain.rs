//! A sharing domain under guests' processes that forge sketches, bytes, page numbers and slots.

use page_share::port::{Answer, Offer, PortError, Publication, Refusal, Report};
use page_share::{Domain, DomainKey, Gfn, GuestId, PAGE_SIZE, PageHasher, Sketch, Slot};

use crate::{Signature, Target, Worker};

pub(crate) const TARGET: Target = Target {
    name: "share-domain",
    about: "content index and pool references under forged sketches, bytes and slots",
    longest: 240,
    seeds,
    worker,
};

const GUESTS: usize = 3;
const PAGES: u32 = 24;
const POOL: u32 = 6;
const CONTENTS: u8 = 8;

/// One call: what, who, and two operands.
const CALL: usize = 4;

fn worker() -> Worker {
    let key = DomainKey::from_bytes([3; 32]);
    let hasher = PageHasher::new(&key);
    let names = (0..CONTENTS)
        .map(|content| hasher.sketch(&[content; PAGE_SIZE]))
        .collect();
    let domain = Domain::with_key(key, POOL).expect("memfds can be made");
    let mut stage = Stage {
        domain,
        names,
        guests: Vec::new(),
        counts: [0; 10],
    };
    Box::new(move |input: &[u8]| stage.run(input))
}

struct Stage {
    domain: Domain,
    names: Vec<Sketch>,
    guests: Vec<GuestId>,
    counts: [u64; 10],
}

impl Stage {
    fn run(&mut self, input: &[u8]) -> Signature {
        self.counts = [0; 10];
        self.guests = (0..GUESTS)
            .map(|_| self.domain.attach(PAGES).expect("pipes can be made"))
            .collect();
        for call in input.chunks_exact(CALL) {
            let guest = self.guests[call[0] as usize / 16 % GUESTS];
            self.call(guest, call[0] % 16, &call[1..]);
            self.check();
        }
        for guest in std::mem::take(&mut self.guests) {
            self.domain.detach(guest);
        }
        self.check();
        let sizes = self.domain.sizes();
        assert_eq!(
            (sizes.hints, sizes.pool_pages, sizes.references),
            (0, 0, 0),
            "the dead leave nothing"
        );
        assert_eq!(self.domain.pool_bytes().expect("fstat works"), 0);
        Signature::of(self.counts)
    }

    /// The sketch of a content, or one that differs from it in bits that the index keeps or does not keep.
    fn sketch(&self, operand: u8) -> Sketch {
        let name = self.names[(operand % CONTENTS) as usize].get();
        Sketch::new(match operand / CONTENTS {
            0..16 => name,
            forged @ 16..24 => name ^ 1 << (forged - 16),
            forged => name ^ 1 << (forged + 6),
        })
    }

    fn call(&mut self, guest: GuestId, what: u8, operands: &[u8]) {
        let report = |stage: &Self, gfn: u8, content: u8| Report {
            gfn: Gfn::new(u32::from(gfn) % (PAGES + 1)),
            sketch: stage.sketch(content),
        };
        match what {
            0..5 => {
                let pages = [
                    report(self, operands[0], operands[1]),
                    report(self, operands[0] ^ 1, operands[2]),
                ];
                self.report(guest, &pages);
            }
            5..10 => {
                let pages = [
                    report(self, operands[0], operands[1]),
                    report(self, operands[0] ^ 1, operands[2]),
                ];
                let bytes =
                    [operands[1] % CONTENTS, operands[2] % CONTENTS].map(|content| [content; PAGE_SIZE]);
                self.publish(guest, &pages, &bytes);
            }
            10 => {
                let mut offers: Vec<Offer> = Vec::new();
                self.domain.offers(guest, &mut offers).expect("attached");
                self.counts[0] += offers.len() as u64;
            }
            11 | 12 => {
                let slots: Vec<Slot> = operands
                    .iter()
                    .map(|slot| Slot::new(u32::from(*slot % 8)))
                    .collect();
                let generation = self.domain.session(guest).expect("attached").generation;
                let released =
                    self.domain
                        .release(guest, generation, &slots[..1 + slots[2].get() as usize % 3]);
                self.counts[1 + usize::from(released.is_err())] += 1;
            }
            13 => {
                let gfn = Gfn::new(u32::from(operands[0]) % (PAGES + 1));
                self.counts[3] += u64::from(self.domain.withdraw(guest, &[gfn]).is_ok());
            }
            14 => {
                let slots = operands.iter().map(|slot| Slot::new(u32::from(*slot % 8)));
                let slots: Vec<Slot> = slots.take(operands[2] as usize % 4).collect();
                self.counts[4] += u64::from(self.domain.restate(guest, &slots).is_ok());
            }
            _ => {
                self.domain.detach(guest);
                let reborn = self.domain.attach(PAGES).expect("pipes can be made");
                self.guests
                    .iter_mut()
                    .filter(|known| **known == guest)
                    .for_each(|known| *known = reborn);
            }
        }
    }

    fn report(&mut self, guest: GuestId, pages: &[Report]) {
        let mut answers = Vec::new();
        match self.domain.report(guest, pages, &mut answers) {
            Ok(()) => {
                assert_eq!(answers.len(), pages.len());
                self.counts[5] += answers
                    .iter()
                    .filter(|answer| matches!(answer, Answer::Shared(_)))
                    .count() as u64;
            }
            Err(PortError::Invalid(_)) => assert!(answers.is_empty()),
            Err(error) => panic!("a report cannot fail like this: {error}"),
        }
    }

    fn publish(&mut self, guest: GuestId, pages: &[Report], bytes: &[[u8; PAGE_SIZE]]) {
        let mut results = Vec::new();
        let Ok(()) = self.domain.publish(guest, pages, bytes, &mut results) else {
            return assert!(results.is_empty());
        };
        for (index, result) in results.iter().enumerate() {
            let place = match result {
                Publication::Granted(_) => 6,
                Publication::Noted => 7,
                Publication::Refused(Refusal::PoolFull) => 8,
                Publication::Refused(_) => 9,
            };
            self.counts[place] += 1;
            let honest = self.names[bytes[index][0] as usize] == pages[index].sketch;
            assert!(
                honest || matches!(result, Publication::Refused(_)),
                "forged bytes entered: {result:?}"
            );
        }
    }

    fn check(&self) {
        if let Err(broken) = self.domain.check() {
            panic!("{broken}");
        }
        let sizes = self.domain.sizes();
        assert!(sizes.pool_pages <= POOL);
        assert!(sizes.hints <= u64::from(PAGES) * GUESTS as u64);
        let damaged = self
            .domain
            .audit(Slot::new(0), 2 * POOL + 600)
            .expect("the pool is readable");
        assert!(damaged.is_empty(), "{damaged:?} hold what they should not");
    }
}

/// A conversation that goes well, and one of each call.
fn seeds() -> Vec<Vec<u8>> {
    let well = vec![
        0, 1, 1, 2, 16, 1, 1, 2, 21, 1, 1, 2, 10, 0, 0, 0, 32, 1, 1, 2, 11, 0, 1, 2, 27, 0, 1, 2,
    ];
    let each = (0..16).flat_map(|what| [what, 2, 3, 4]).collect();
    vec![well, each]
}
