//! Huge pages for the tests that need some, for as long as tests run.

use std::fs;

const SETTING: &str = "/proc/sys/vm/nr_hugepages";

/// What the tests of hugetlbfs memory use at a time, and some to spare.
const WANTED: u64 = 8;

/// The setting as it was; dropping this puts it back.
pub(super) struct HugePages {
    before: Option<u64>,
}

impl HugePages {
    /// Sees to it that there are some, where this user may. Tests that find none skip, saying so.
    pub(super) fn provide() -> Self {
        let now = fs::read_to_string(SETTING)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        let before = now.filter(|&pages| pages < WANTED && fs::write(SETTING, WANTED.to_string()).is_ok());
        Self { before }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = fs::write(SETTING, before.to_string())
        {
            eprintln!("test: {SETTING} was {before} and cannot be put back: {error}");
        }
    }
}
