//! How much could be saved at all? An oracle that reads every page of guests that stand still.
//!
//! What can be saved is every page of zeros, and of each other content all copies but one. Contents are compared by their
//! names in the guests' [`Inventory`](levy_member::Inventory): keyed BLAKE3 with a key that is drawn anew for each
//! question. The engine under test finds equal pages by other means.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::testbed::{Guest, Testbed, TestbedError};
use levy_member::{Inventory, Key, Kind};
use levy_protocol::control::Request;

/// Pages in one question: a paused guest's VMM answers it in seconds even on an emulated host.
const PIECE: u32 = 2048;

/// What the oracle saw. Pages of 4 KiB, of all guests together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Pages that the guests hold: all but those never touched, given up or lost.
    pub held: u64,
    /// Of these, pages of zeros.
    pub zero: u64,
    /// Of these, pages whose content some other page has too, zeros left out.
    pub copies: u64,
    /// How many contents those have.
    pub distinct: u64,
    /// What could be saved: `zero + copies - distinct`.
    pub reclaimable: u64,
    /// Pages of zeros that are the kernel's zero page.
    pub found_zero: u64,
    /// Pages mapped from the pool.
    pub found_shared: u64,
    /// What could be saved and was not, by where the pages are, those of zeros with `zeros_` before the name.
    pub missed: BTreeMap<String, u64>,
}

/// One page of one guest.
#[derive(Clone, Copy)]
struct Held {
    kind: Kind,
    name: u128,
}

/// How often a content is there, and how often from the pool.
#[derive(Clone, Copy, Default)]
struct Copies {
    all: u32,
    shared: u32,
}

impl Findings {
    /// Asks `guests`, which the caller has paused.
    ///
    /// # Errors
    /// When one does not answer, or answers nonsense.
    pub fn of(testbed: &Testbed, guests: &[Guest]) -> Result<Self, TestbedError> {
        let key = Key::random()
            .map_err(|e| TestbedError::Impossible(format!("no random key for the oracle: {e}")))?;
        let mut findings = Self::default();
        let mut pages = Vec::new();
        for guest in guests {
            read(testbed, *guest, &key, |kind, name| {
                findings.add(kind, name, &mut pages);
            })?;
        }
        findings.conclude(&pages);
        Ok(findings)
    }

    fn add(&mut self, kind: Kind, name: Option<u128>, pages: &mut Vec<Held>) {
        if matches!(kind, Kind::Empty | Kind::Ballooned | Kind::Lost) {
            return;
        }
        self.held += 1;
        self.found_shared += u64::from(kind == Kind::Shared);
        match name {
            Some(name) => pages.push(Held { kind, name }),
            None => {
                self.zero += 1;
                match kind {
                    Kind::Zero => self.found_zero += 1,
                    _ => *self.missed.entry(format!("zeros_{}", label(kind))).or_default() += 1,
                }
            }
        }
    }

    fn conclude(&mut self, pages: &[Held]) {
        let mut contents: HashMap<u128, Copies> = HashMap::new();
        for page in pages {
            let copies = contents.entry(page.name).or_default();
            copies.all += 1;
            copies.shared += u32::from(page.kind == Kind::Shared);
        }
        contents.retain(|_, copies| copies.all > 1);
        self.distinct = contents.len() as u64;
        self.copies = contents.values().map(|copies| u64::from(copies.all)).sum();
        self.reclaimable = self.zero + self.copies - self.distinct;
        for page in pages.iter().filter(|page| page.kind != Kind::Shared) {
            let Some(copies) = contents.get_mut(&page.name) else {
                continue;
            };
            // Where no guest shares a content, one of its pages would have to stay.
            if copies.shared == 0 {
                copies.shared = 1;
                continue;
            }
            *self.missed.entry(label(page.kind).to_owned()).or_default() += 1;
        }
    }
}

/// Every page of one guest.
fn read(
    testbed: &Testbed,
    guest: Guest,
    key: &Key,
    mut each: impl FnMut(Kind, Option<u128>),
) -> Result<(), TestbedError> {
    let mut first = Some(0);
    while let Some(from) = first {
        let answer = testbed.ask(
            guest,
            &Request::Inventory {
                key: key.to_text(),
                first: from,
                pages: PIECE,
            },
        )?;
        let nonsense = || {
            TestbedError::Impossible(format!(
                "guest {} does not say what is in its pages",
                testbed.name(guest)
            ))
        };
        let inventory: Inventory = serde_json::from_value(answer).map_err(|_| nonsense())?;
        for (kind, name) in inventory.pages().ok_or_else(nonsense)? {
            each(kind, name);
        }
        first = inventory.next.filter(|next| *next > from);
    }
    Ok(())
}

fn label(kind: Kind) -> &'static str {
    match kind {
        Kind::Empty => "empty",
        Kind::Private => "private",
        Kind::Zero => "zero",
        Kind::Shared => "shared",
        Kind::Broken => "broken",
        Kind::Compressed => "compressed",
        Kind::Swapped => "swapped",
        Kind::Ballooned => "ballooned",
        Kind::Unmanaged => "unmanaged",
        Kind::Sampled => "sampled",
        Kind::Lost => "lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_copies_but_one_and_all_zeros_can_be_saved() {
        let mut findings = Findings::default();
        let mut pages = Vec::new();
        for (kind, name) in [
            (Kind::Empty, None),
            (Kind::Zero, None),
            (Kind::Private, None),
            (Kind::Private, Some(1)),
            (Kind::Private, Some(2)),
            (Kind::Shared, Some(2)),
            (Kind::Shared, Some(2)),
            (Kind::Private, Some(3)),
            (Kind::Broken, Some(3)),
            (Kind::Compressed, Some(3)),
            (Kind::Ballooned, None),
        ] {
            findings.add(kind, name, &mut pages);
        }
        findings.conclude(&pages);
        let missed = [
            ("zeros_private", 1),
            ("private", 1),
            ("broken", 1),
            ("compressed", 1),
        ];
        assert_eq!(
            findings,
            Findings {
                held: 9,
                zero: 2,
                copies: 6,
                distinct: 2,
                reclaimable: 6,
                found_zero: 1,
                found_shared: 2,
                missed: missed.map(|(name, count)| (name.to_owned(), count)).into(),
            }
        );
    }
}
