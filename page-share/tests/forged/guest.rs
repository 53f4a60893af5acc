//! A model guest: memory whose pages hold contents, and a plain map of what is mapped from the pool.

use std::collections::BTreeMap;

use page_share::port::{Answer, Publication, REPORT_BATCH};
use page_share::{Gfn, PoolGeneration, Slot};

use super::contents::{COMMON, Content};
use super::wire::Life;
use crate::guest_process::Process;

/// Pages of a guest.
pub(crate) const PAGES: u32 = 10;

/// What the outstanding request was about.
#[derive(Debug)]
pub(crate) enum Asked {
    /// With what it had mapped when it lost the connection before: what it unmaps later it gives back.
    Hello(Vec<Slot>),
    Restate,
    Report(Vec<(u32, Content)>),
    Publish(Vec<(u32, Content)>),
    Offers,
    Claim(Vec<Slot>),
    Other,
}

/// A reference that was granted and is not looked at yet.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) gfn: u32,
    pub(crate) slot: Slot,
    /// What the page was reported as.
    pub(crate) expected: Option<Content>,
}

pub(crate) struct Guest {
    pub(crate) life: Life,
    pub(crate) process: Process,
    /// It says what it likes.
    pub(crate) hostile: bool,
    pub(crate) memory: Vec<Content>,
    /// The pool that it knows.
    pub(crate) generation: Option<PoolGeneration>,
    pub(crate) mapped: BTreeMap<u32, (PoolGeneration, Slot)>,
    pub(crate) grants: Vec<Grant>,
    /// References that nothing maps any more, to be given back.
    pub(crate) returns: Vec<Slot>,
    /// Pages whose bytes the manager asked for.
    pub(crate) wanted: Vec<(u32, Content)>,
    pub(crate) connection: Option<u64>,
    pub(crate) asked: Option<Asked>,
}

impl Guest {
    pub(crate) fn new(life: Life, process: Process, hostile: bool) -> Self {
        Self {
            life,
            process,
            hostile,
            memory: (0..PAGES).map(|gfn| 1 + gfn % (COMMON - 1)).collect(),
            generation: None,
            mapped: BTreeMap::new(),
            grants: Vec::new(),
            returns: Vec::new(),
            wanted: Vec::new(),
            connection: None,
            asked: None,
        }
    }

    /// The content that only this page of this guest ever has.
    pub(crate) fn secret(&self, gfn: u32) -> Content {
        COMMON + self.life.0 * PAGES + gfn
    }

    pub(crate) fn write(&mut self, gfn: u32, content: Content) {
        self.unmap(gfn);
        self.memory[gfn as usize] = content;
    }

    /// The page is mapped from the pool no longer.
    pub(crate) fn unmap(&mut self, gfn: u32) -> bool {
        let Some((generation, slot)) = self.mapped.remove(&gfn) else {
            return false;
        };
        if Some(generation) == self.generation {
            self.returns.push(slot);
        }
        true
    }

    /// Looks at what it was granted, as `content`, which the slot holds: the page is mapped if it has it.
    pub(crate) fn merge(&mut self, grant: &Grant, content: Content) -> bool {
        let fits = self.memory[grant.gfn as usize] == content && !self.mapped.contains_key(&grant.gfn);
        match (fits, self.generation) {
            (true, Some(generation)) => drop(self.mapped.insert(grant.gfn, (generation, grant.slot))),
            _ => self.returns.push(grant.slot),
        }
        fits
    }

    /// What it could have mapped from the pool of `generation`, or may still map: one entry for each reference.
    pub(crate) fn held(&self, generation: PoolGeneration) -> BTreeMap<Slot, u32> {
        let mut held = BTreeMap::new();
        if self.generation != Some(generation) {
            return held;
        }
        let mapped = self.mapped_from(generation).into_iter();
        let granted = self.grants.iter().map(|grant| grant.slot);
        for slot in mapped.chain(granted).chain(self.returns.iter().copied()) {
            *held.entry(slot).or_default() += 1;
        }
        held
    }

    pub(crate) fn mapped_from(&self, generation: PoolGeneration) -> Vec<Slot> {
        let mapped = self.mapped.values().filter(|(from, _)| *from == generation);
        mapped.map(|&(_, slot)| slot).collect()
    }

    /// The connection is lost: whatever it was told on it and has not mapped counts no more, as it may have been told
    /// more than it knows.
    pub(crate) fn forget_grants(&mut self) {
        self.grants.clear();
        self.returns.clear();
        self.wanted.clear();
        self.asked = None;
    }

    pub(crate) fn answered(&mut self, about: &[(u32, Content)], answers: &[Answer]) -> Result<(), String> {
        for (&(gfn, content), answer) in about.iter().zip(answers) {
            match *answer {
                Answer::Noted => {}
                _ if content >= COMMON => {
                    return Err(format!(
                        "{answer:?} to content {content}, which only one page has"
                    ));
                }
                Answer::Shared(slot) => self.granted(gfn, slot, Some(content)),
                Answer::Publish => self.wanted.push((gfn, content)),
            }
        }
        Ok(())
    }

    pub(crate) fn published(&mut self, about: &[(u32, Content)], results: &[Publication]) {
        for (&(gfn, content), result) in about.iter().zip(results) {
            if let Publication::Granted(slot) = *result {
                self.granted(gfn, slot, Some(content));
            }
        }
    }

    pub(crate) fn granted(&mut self, gfn: u32, slot: Slot, expected: Option<Content>) {
        self.grants.push(Grant { gfn, slot, expected });
    }

    /// The references to give back now.
    pub(crate) fn take_returns(&mut self) -> Vec<Slot> {
        let count = self.returns.len().min(REPORT_BATCH);
        self.returns.drain(..count).collect()
    }

    pub(crate) fn is_page(gfn: Gfn) -> bool {
        gfn.get() < PAGES
    }
}
