//! What is in every page of a guest that stands still: for an oracle that judges sharing, from outside of it.
//!
//! Names of contents are keyed BLAKE3, cut to 128 bits, and the key is the asker's: they say which pages are equal among
//! the guests that were asked with one key, and nothing else. They share no code with the sketches by which the engine
//! finds equal pages, so that what it overlooks shows.

use levy_protocol::control::MOST_PAGES;
use page_share::{Gfn, Page, PageRun, Region, State};
use serde::{Deserialize, Serialize};

/// Bytes of a content's name.
const NAME: usize = 16;

/// The asker's key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// A fresh key.
    ///
    /// # Errors
    /// When the kernel refuses random bytes.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 32];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(Self(bytes))
    }

    /// The key in 64 hexadecimal digits.
    pub fn to_text(self) -> String {
        hex(&self.0)
    }

    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Some pages of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Where to go on; none after the last page.
    pub next: Option<u32>,
    /// A letter for each page, in rising order, holes left out; see [`Kind`]. A capital where the page holds anything
    /// but zeros.
    pub kinds: String,
    /// For each capital, the name of the content, 32 hexadecimal digits.
    pub names: String,
}

/// Where a page is, as the letters of an [`Inventory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `e`: never touched, or given up.
    Empty,
    /// `p`: memory of its own.
    Private,
    /// `z`: the kernel's zero page, by the last look.
    Zero,
    /// `s`: mapped from the pool.
    Shared,
    /// `b`: mapped from the pool, with a private copy since a write.
    Broken,
    /// `c`: in the compressed store.
    Compressed,
    /// `w`: in the swap file.
    Swapped,
    /// `o`: in the balloon.
    Ballooned,
    /// `u`: in a block that is not under management.
    Unmanaged,
    /// `t`: taken for a sample.
    Sampled,
    /// `l`: lost to a failing swap file.
    Lost,
}

const LETTERS: [(Kind, char); 11] = [
    (Kind::Empty, 'e'),
    (Kind::Private, 'p'),
    (Kind::Zero, 'z'),
    (Kind::Shared, 's'),
    (Kind::Broken, 'b'),
    (Kind::Compressed, 'c'),
    (Kind::Swapped, 'w'),
    (Kind::Ballooned, 'o'),
    (Kind::Unmanaged, 'u'),
    (Kind::Sampled, 't'),
    (Kind::Lost, 'l'),
];

impl Kind {
    /// The kind with this letter, in either case.
    pub fn of_letter(letter: char) -> Option<Self> {
        let letter = letter.to_ascii_lowercase();
        let known = LETTERS.iter().find(|(_, its)| *its == letter);
        known.map(|(kind, _)| *kind)
    }

    fn letter(self) -> char {
        let known = LETTERS.iter().find(|(kind, _)| *kind == self);
        known.map_or('l', |(_, letter)| *letter)
    }

    fn of(state: State) -> Option<Self> {
        Some(match state {
            State::Hole => return None,
            State::Empty => Self::Empty,
            // A page that changes hands stays private or shared; no thread takes one from a guest that has stood still
            // for a while.
            State::Private | State::InTransit => Self::Private,
            State::Zero => Self::Zero,
            State::Shared => Self::Shared,
            State::Broken => Self::Broken,
            State::Compressed => Self::Compressed,
            State::Swapped => Self::Swapped,
            State::Ballooned => Self::Ballooned,
            State::Huge => Self::Unmanaged,
            State::Sampled => Self::Sampled,
            State::Lost => Self::Lost,
        })
    }
}

impl Inventory {
    /// Reads up to `pages` pages of `region` from frame `first` on. Changes nothing.
    pub fn take(region: &Region, key: &Key, first: u32, pages: u32) -> Self {
        let limit = region.page_limit();
        let count = pages.clamp(1, MOST_PAGES).min(limit.saturating_sub(first));
        let mut inventory = Self::default();
        let run = PageRun {
            first: Gfn::new(first),
            count,
        };
        region.peek(run, |_, state, bytes| inventory.add(key, state, bytes));
        let end = first.saturating_add(count);
        inventory.next = (end < limit && count > 0).then_some(end);
        inventory
    }

    fn add(&mut self, key: &Key, state: State, bytes: Option<&Page>) {
        let Some(kind) = Kind::of(state) else { return };
        let letter = kind.letter();
        match bytes.filter(|page| page.iter().any(|byte| *byte != 0)) {
            Some(page) => {
                self.kinds.push(letter.to_ascii_uppercase());
                let name = blake3::keyed_hash(&key.0, page);
                self.names.push_str(&hex(&name.as_bytes()[..NAME]));
            }
            None => self.kinds.push(letter),
        }
    }

    /// Every page: its kind, and the name of its content unless that is nothing but zeros. `None` when a VMM answered
    /// nonsense.
    pub fn pages(&self) -> Option<Vec<(Kind, Option<u128>)>> {
        let mut names = self.names.as_bytes().chunks_exact(NAME * 2);
        let page = |letter: char| {
            let kind = Kind::of_letter(letter)?;
            if letter.is_ascii_lowercase() {
                return Some((kind, None));
            }
            let digits = std::str::from_utf8(names.next()?).ok()?;
            Some((kind, Some(u128::from_str_radix(digits, 16).ok()?)))
        };
        self.kinds.chars().map(page).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use page_share::{AnonymousMemory, Options};

    use super::*;

    #[test]
    fn every_page_is_named_by_its_content_and_the_key() {
        let memory = AnonymousMemory::new(8).unwrap();
        for (page, byte) in [(0, 1), (1, 1), (2, 2), (3, 0)] {
            memory.write_page(page, &[byte; 4096]);
        }
        let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
        let counts = || {
            let stats = region.stats();
            (stats.private, stats.zero, stats.empty, stats.huge, stats.faults)
        };
        let before = counts();
        let (one, other) = (Key::random().unwrap(), Key::random().unwrap());
        let first = Inventory::take(&region, &one, 0, 3);
        assert_eq!(first.next, Some(3));
        let rest = Inventory::take(&region, &one, 3, 100);
        assert_eq!((rest.next, rest.kinds.len()), (None, 5));
        assert!(rest.pages().unwrap().iter().all(|(_, name)| name.is_none()));
        let names: Vec<_> = first.pages().unwrap().into_iter().map(|(_, name)| name).collect();
        assert!(names[0].is_some() && names[0] == names[1] && names[1] != names[2]);
        let again = Inventory::take(&region, &other, 0, 3);
        assert_ne!(first.names, again.names);
        assert_eq!(counts(), before, "nothing has changed");
    }

    #[test]
    fn keys_and_answers_that_are_none_are_told() {
        let key = Key::random().unwrap();
        assert_eq!(Key::parse(&key.to_text()), Some(key));
        for text in ["", "abc", &"x".repeat(64), &"é".repeat(32)] {
            assert_eq!(Key::parse(text), None);
        }
        for (kinds, names) in [("P", ""), ("q", ""), ("P", "zz"), ("P", &*"g".repeat(32))] {
            let nonsense = Inventory {
                next: None,
                kinds: kinds.into(),
                names: names.into(),
            };
            assert_eq!(nonsense.pages(), None);
        }
    }
}
