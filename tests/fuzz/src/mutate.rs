//! How inputs are made: from a kept one, by small and large damage.

/// Numbers that look random and are the same for the same seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

/// Values at which code tends to break.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    4095,
    4096,
    0x7fff,
    0xffff,
    0xffff_ffff,
    u64::MAX - 1,
    u64::MAX,
];

impl Dice {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to below `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 {
            0
        } else {
            (self.roll() % end as u64) as usize
        }
    }

    /// A damaged copy of `input`, at most `longest` bytes, with pieces of `other`.
    pub(crate) fn mutate(&mut self, input: &[u8], other: &[u8], longest: usize) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..1 << self.below(5) {
            self.damage(&mut bytes, other, longest);
        }
        bytes
    }

    fn damage(&mut self, bytes: &mut Vec<u8>, other: &[u8], longest: usize) {
        let at = self.below(bytes.len());
        match self.below(9) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            1 if !bytes.is_empty() => bytes[at] = self.roll() as u8,
            2 | 3 => {
                let width = 1 << self.below(4);
                let value = EDGES[self.below(EDGES.len())];
                overwrite(bytes, at, &value.to_le_bytes()[..width]);
            }
            4 => {
                let (start, len) = self.piece(other);
                overwrite(bytes, at, &other[start..start + len]);
            }
            5 => {
                let (start, len) = self.piece(&bytes.clone());
                let copy = bytes[start..start + len].to_vec();
                overwrite(bytes, at, &copy);
            }
            6 => {
                let grown = (1 + self.below(64)).min(longest.saturating_sub(bytes.len()));
                let filler: Vec<u8> = (0..grown).map(|_| self.roll() as u8).collect();
                bytes.splice(at..at, filler);
            }
            7 => {
                let (start, len) = self.piece(&bytes.clone());
                bytes.drain(start..start + len);
            }
            _ => {
                let (start, len) = self.piece(other);
                let len = len.min(longest.saturating_sub(bytes.len()));
                bytes.splice(at..at, other[start..start + len].iter().copied());
            }
        }
    }

    /// Some piece of `bytes`, mostly a short one: where it starts and how long it is.
    fn piece(&mut self, bytes: &[u8]) -> (usize, usize) {
        let start = self.below(bytes.len());
        let limit = 1 << self.below(9);
        (start, self.below((bytes.len() - start).min(limit) + 1))
    }
}

/// Writes `value` at `at`, as far as there is room.
fn overwrite(bytes: &mut [u8], at: usize, value: &[u8]) {
    let len = value.len().min(bytes.len() - at);
    bytes[at..at + len].copy_from_slice(&value[..len]);
}

/// Every seed, and then without end what is made of two.
#[cfg(test)]
pub(crate) fn inputs(seeds: Vec<Vec<u8>>, longest: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut dice = Dice::new(1);
    (0..).map(move |run| match seeds.get(run) {
        Some(seed) => seed.clone(),
        None => {
            let [from, other] = [0; 2].map(|_| dice.below(seeds.len()));
            dice.mutate(&seeds[from], &seeds[other], longest)
        }
    })
}
