//! One fleet's witness: remembers what was done last, and tells what must not be.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::fleet::Setting;
use crate::tally::{Breach, Tally};

/// Doings that are remembered.
const KEPT: usize = 40;

#[derive(Debug)]
pub(crate) struct Witness {
    pub(crate) tally: Arc<Tally>,
    fleet: usize,
    seed: u64,
    began: Instant,
    is_loud: bool,
    diary: Mutex<VecDeque<String>>,
}

impl Witness {
    pub(crate) fn new(setting: &Setting, fleet: usize) -> Self {
        Self {
            tally: Arc::clone(&setting.tally),
            fleet,
            seed: setting.seed,
            began: Instant::now(),
            is_loud: setting.is_loud,
            diary: Mutex::default(),
        }
    }

    /// Remembers something that was done.
    pub(crate) fn note(&self, text: &str) {
        let mut diary = self.diary.lock().unwrap_or_else(PoisonError::into_inner);
        if diary.len() == KEPT {
            diary.pop_front();
        }
        let line = format!("{:.2} s: {text}", self.began.elapsed().as_secs_f64());
        if self.is_loud {
            eprintln!("fleet {}: {line}", self.fleet);
        }
        diary.push_back(line);
    }

    /// Counts something that must not be, `count` times, and describes it with what was done before.
    pub(crate) fn breach(&self, breach: Breach, count: u64, what: &str) {
        self.note(&format!(
            "!!! {}: {}",
            breach.name(),
            what.lines().next().unwrap_or_default()
        ));
        let diary = self.diary.lock().unwrap_or_else(PoisonError::into_inner);
        let doings = Vec::from_iter(diary.iter().map(String::as_str)).join("\n    ");
        drop(diary);
        let (fleet, seed, at) = (self.fleet, self.seed, self.began.elapsed().as_secs_f64());
        self.tally.breach(breach, count, || {
            format!(
                "fleet {fleet} of seed {seed} at {at:.2} s: {what}\n  what was done before:\n    {doings}"
            )
        });
    }
}
