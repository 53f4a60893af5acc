//! The domain, its model guests and everything that is on its way between them.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use page_share::port::{PortError, Report};
use page_share::{Attachment, Dead, Domain, DomainKey, Gfn, PageHasher, PoolGeneration, Slot};

use super::contents::{self, COMMON, Content, Contents};
use super::guest::{Asked, Guest, PAGES};
use super::step::{Count, Step, What};
use super::wire::{Connection, Life, Reply, Request, call};
use crate::guest_process::Process;

pub(super) const GUESTS: usize = 4;
pub(super) const POOL: u32 = 16;
const KEY: [u8; 32] = [8; 32];

/// Connections that are remembered besides those that guests use.
const CONNECTIONS: usize = 24;

pub(crate) struct World {
    pub(super) domain: Domain,
    pub(super) generation: PoolGeneration,
    pub(super) pool: Arc<File>,
    pub(super) contents: Contents,
    pub(super) guests: Vec<Guest>,
    pub(super) connections: Vec<Connection>,
    /// For each life that this domain has admitted: the newest right to speak for it, and on which connection.
    pub(super) current: HashMap<Life, (Attachment, u64)>,
    pub(super) dead: Vec<(Life, Dead)>,
    pub(super) buried: Vec<Dead>,
    pub(super) spare: Vec<Process>,
    pub(super) lives: u32,
    pub(super) opened: u64,
    pub(crate) counts: [u64; Count::ALL.len()],
}

/// A domain with its pool as a guest's process sees it.
fn domain() -> (Domain, PoolGeneration, Arc<File>) {
    let mut domain = Domain::with_key(DomainKey::from_bytes(KEY), POOL).expect("memfds can be made");
    let guest = domain.attach(1).expect("pipes can be made");
    let session = domain.session(guest.attachment()).expect("attached");
    domain.retire(guest);
    (domain, session.generation, session.pool)
}

impl World {
    pub(crate) fn new(processes: Vec<Process>) -> Self {
        let (domain, generation, pool) = domain();
        let mut world = Self {
            domain,
            generation,
            pool,
            contents: Contents::new(PageHasher::new(&DomainKey::from_bytes(KEY))),
            guests: Vec::new(),
            connections: Vec::new(),
            current: HashMap::new(),
            dead: Vec::new(),
            buried: Vec::new(),
            spare: processes,
            lives: 0,
            opened: 0,
            counts: [0; Count::ALL.len()],
        };
        for number in 0..GUESTS {
            let guest = world.born(number == 0);
            world.guests.push(guest);
        }
        world
    }

    pub(crate) fn into_processes(self) -> Vec<Process> {
        let living = self.guests.into_iter().map(|guest| guest.process.again());
        living.chain(self.spare).collect()
    }

    fn born(&mut self, hostile: bool) -> Guest {
        let process = self.spare.pop().unwrap_or_else(Process::start);
        self.lives += 1;
        Guest::new(Life(self.lives), process, hostile)
    }

    pub(super) fn count(&mut self, what: Count) {
        self.counts[what as usize] += 1;
    }

    pub(crate) fn take(&mut self, Step { what, a, b }: Step) -> Result<(), String> {
        let guest = a as usize % GUESTS;
        match what {
            What::Send => self.send(guest, b),
            What::Deliver => return self.deliver(guest, b),
            What::Receive => return self.receive(guest),
            What::Merge => return self.merge(guest, b),
            What::Write => self.write(guest, b),
            What::Unmap => {
                let unmapped = self.guests[guest].unmap(b % PAGES);
                self.counts[Count::Unmapped as usize] += u64::from(unmapped);
            }
            What::Lose => {
                if self.guests[guest].connection.take().is_some() {
                    self.count(Count::Lost);
                }
            }
            What::Reconnect => self.reconnect(guest),
            What::Die => self.die(guest),
            What::Bury => return self.bury(a),
            What::Forge => self.forge(a, b),
            What::Replay => self.replay(a, b),
            What::Restart => self.restart(),
        }
        Ok(())
    }

    fn write(&mut self, guest: usize, b: u32) {
        let guest = &mut self.guests[guest];
        let gfn = b % PAGES;
        let secret = (b / PAGES).is_multiple_of(4);
        let content = match secret {
            true => guest.secret(gfn),
            false => 1 + b / PAGES / 4 % (COMMON - 1),
        };
        let broken = guest.mapped.contains_key(&gfn);
        guest.write(gfn, content);
        self.counts[Count::Broken as usize] += u64::from(broken);
        self.counts[Count::Secrets as usize] += u64::from(secret);
    }

    fn merge(&mut self, guest: usize, b: u32) -> Result<(), String> {
        let guest = &mut self.guests[guest];
        if guest.grants.is_empty() || guest.generation != Some(self.generation) {
            return Ok(());
        }
        let grant = guest.grants.swap_remove(b as usize % guest.grants.len());
        let found = contents::read(&self.pool, grant.slot);
        let Some(content) = found.filter(|found| grant.expected.is_none_or(|expected| expected == *found))
        else {
            return Err(format!("{grant:?} was granted, but there is {found:?}"));
        };
        if content >= COMMON {
            return Err(format!("{grant:?} holds {content}, which only one page has"));
        }
        let merged = guest.merge(&grant, content);
        self.count(if merged { Count::Merged } else { Count::Differed });
        Ok(())
    }

    fn open(&mut self, life: Life) -> u64 {
        self.opened += 1;
        self.connections.push(Connection::open(self.opened, life));
        if self.connections.len() > CONNECTIONS {
            let used = |connection: &Connection| {
                let mut guests = self.guests.iter();
                guests.any(|guest| guest.connection == Some(connection.number))
            };
            if let Some(oldest) = self.connections.iter().position(|connection| !used(connection)) {
                self.connections.remove(oldest);
            }
        }
        self.opened
    }

    /// Opens a connection, whatever has become of the one before: requests may be on their way on it.
    fn reconnect(&mut self, guest: usize) {
        if self.guests[guest].connection.is_some() {
            return;
        }
        self.guests[guest].forget_grants();
        let number = self.open(self.guests[guest].life);
        let guest = &mut self.guests[guest];
        let held = guest.generation.map(|known| guest.mapped_from(known));
        guest.connection = Some(number);
        guest.asked = Some(Asked::Hello(held.unwrap_or_default()));
        self.count(Count::Reconnected);
    }

    pub(super) fn connection(&mut self, number: u64) -> Option<&mut Connection> {
        self.connections
            .iter_mut()
            .find(|connection| connection.number == number)
    }

    /// A guest that waits for nothing asks for something.
    fn send(&mut self, guest: usize, b: u32) {
        let Some(number) = self.guests[guest].connection else {
            return;
        };
        if self.guests[guest].hostile {
            let request = self.forged(b);
            let connection = self.connection(number);
            connection
                .into_iter()
                .for_each(|to| to.requests.push_back(request.clone()));
            return self.count(Count::Forged);
        }
        if self.guests[guest].asked.is_some() {
            return;
        }
        let Some((request, about)) = self.next_request(guest, b) else {
            return;
        };
        self.guests[guest].asked = Some(about);
        let connection = self.connection(number);
        connection
            .into_iter()
            .for_each(|to| to.requests.push_back(request.clone()));
        self.count(Count::Sent);
    }

    fn next_request(&mut self, guest: usize, b: u32) -> Option<(Request, Asked)> {
        let guest = &mut self.guests[guest];
        let generation = guest.generation?;
        Some(match b % 8 {
            0 | 1 if !guest.wanted.is_empty() => {
                let about = std::mem::take(&mut guest.wanted);
                let reports = named(&mut self.contents, &about);
                let bytes = about.iter().map(|&(gfn, _)| guest.memory[gfn as usize]).collect();
                (Request::Publish(reports, bytes), Asked::Publish(about))
            }
            2 if !guest.returns.is_empty() => {
                (Request::Release(generation, guest.take_returns()), Asked::Other)
            }
            3 => (Request::Offers, Asked::Offers),
            4 if (b / 8).is_multiple_of(4) => {
                let slots: Vec<Slot> = (0..3).map(|at| self.some_slot(b >> (8 + at))).collect();
                (Request::Claim(generation, slots.clone()), Asked::Claim(slots))
            }
            5 if (b / 8).is_multiple_of(4) => {
                (Request::Withdraw(vec![Gfn::new(b / 32 % PAGES)]), Asked::Other)
            }
            _ => {
                let first = b / 8 % PAGES;
                let pages = (first..PAGES)
                    .take(4)
                    .filter(|gfn| !guest.mapped.contains_key(gfn));
                let about: Vec<_> = pages.map(|gfn| (gfn, guest.memory[gfn as usize])).collect();
                let reports = named(&mut self.contents, &about);
                (Request::Report(reports), Asked::Report(about))
            }
        })
    }

    fn die(&mut self, guest: usize) {
        let hostile = self.guests[guest].hostile;
        let reborn = self.born(hostile);
        let dead = std::mem::replace(&mut self.guests[guest], reborn);
        self.dead.push((dead.life, dead.process.die()));
        self.count(Count::Died);
    }

    /// The manager learns of a death, perhaps once more.
    fn bury(&mut self, a: u32) -> Result<(), String> {
        if a.is_multiple_of(4) && !self.buried.is_empty() {
            let dead = &self.buried[a as usize / 4 % self.buried.len()];
            if self.domain.detach(dead) {
                return Err("a death ended a guest twice".to_owned());
            }
            self.count(Count::ProofUsedAgain);
        } else if !self.dead.is_empty() {
            let (life, dead) = self.dead.swap_remove(a as usize / 4 % self.dead.len());
            let known = self.current.remove(&life).is_some();
            if self.domain.detach(&dead) != known {
                return Err(format!(
                    "{life:?} was known: {known}, and its death said otherwise"
                ));
            }
            self.buried.push(dead);
            self.count(Count::Buried);
        }
        Ok(())
    }

    /// Another manager takes over, with another pool. What is on its way may still reach it.
    fn restart(&mut self) {
        (self.domain, self.generation, self.pool) = domain();
        self.current.clear();
        for connection in &mut self.connections {
            connection.closed = true;
            connection.replies.push_back(Reply::End);
        }
        self.count(Count::Restarted);
    }

    /// The manager reads the next request of some connection, often of one on which a guest waits for the answer.
    fn deliver(&mut self, guest: usize, b: u32) -> Result<(), String> {
        let used = self.guests[guest].connection.filter(|_| !b.is_multiple_of(4));
        let waiting = |&place: &usize| {
            let connection = &self.connections[place];
            !connection.requests.is_empty() && used.is_none_or(|used| used == connection.number)
        };
        let places: Vec<usize> = (0..self.connections.len()).filter(waiting).collect();
        let Some(&place) = places.get(b as usize / 4 % places.len().max(1)) else {
            return Ok(());
        };
        let connection = &mut self.connections[place];
        let Some(request) = connection.requests.pop_front() else {
            return Ok(());
        };
        if connection.past.len() < 8 {
            connection.past.push(request.clone());
        }
        match (request, connection.attachment) {
            (Request::Hello, None) if !connection.closed => {
                self.hello(place);
                Ok(())
            }
            // Spoken out of turn: the connection ends, nothing is done.
            (Request::Hello, _) | (_, None) => Ok(()),
            (request, Some(from)) => self.ask(place, from, &request),
        }
    }

    fn hello(&mut self, place: usize) {
        let life = self.connections[place].life;
        let living = self.guests.iter().find(|guest| guest.life == life);
        let Some(guest) = living else {
            // Its process is dead: only proofs are left of it.
            self.connections[place].replies.push_back(Reply::End);
            return self.count(Count::DeadHello);
        };
        if guest.connection != Some(self.connections[place].number) {
            self.counts[Count::LateHello as usize] += 1;
        }
        let admitted = self.domain.admit(PAGES, &guest.process.watch);
        let connection = &mut self.connections[place];
        match admitted {
            Ok(attachment) => {
                connection.attachment = Some(attachment);
                connection.replies.push_back(Reply::Welcome(self.generation));
                self.current.insert(life, (attachment, connection.number));
            }
            Err(_) => connection.replies.push_back(Reply::End),
        }
    }

    /// One request of an attached connection.
    fn ask(&mut self, place: usize, from: Attachment, request: &Request) -> Result<(), String> {
        let connection = &self.connections[place];
        let (life, number, forged) = (connection.life, connection.number, connection.forged);
        let heard = self
            .current
            .get(&life)
            .is_some_and(|(_, newest)| *newest == number);
        let before = (self.domain.sizes(), self.domain.counters());
        let outcome = call(&mut self.domain, from, request);
        let honest = !forged
            && self
                .guests
                .iter()
                .any(|guest| guest.life == life && !guest.hostile);
        let reply = match outcome {
            Ok(reply) if heard => reply,
            Ok(_) => return Err(format!("{request:?} was done without authority")),
            Err(PortError::Superseded(_)) if !heard => {
                if (self.domain.sizes(), self.domain.counters()) != before {
                    return Err(format!("{request:?} was refused and changed something"));
                }
                self.count(Count::Superseded);
                Reply::End
            }
            Err(error) if honest => return Err(format!("{request:?} of an honest guest failed: {error}")),
            Err(_) => {
                self.count(Count::Refused);
                Reply::Done
            }
        };
        self.connections[place].replies.push_back(reply);
        self.count(Count::Done);
        Ok(())
    }

    /// A guest reads the next reply on its connection.
    fn receive(&mut self, guest: usize) -> Result<(), String> {
        let Some(number) = self.guests[guest].connection else {
            return Ok(());
        };
        let Some(connection) = self.connection(number) else {
            return Ok(());
        };
        let Some(reply) = connection.replies.pop_front() else {
            return Ok(());
        };
        let guest = &mut self.guests[guest];
        if guest.hostile {
            return Ok(());
        }
        match (reply, guest.asked.take()) {
            (Reply::End, _) => guest.connection = None,
            (Reply::Welcome(generation), Some(Asked::Hello(held))) => {
                self.welcomed(number, generation, &held);
            }
            (Reply::Answers(answers), Some(Asked::Report(about))) => guest.answered(&about, &answers)?,
            (Reply::Answers(answers), Some(Asked::Claim(slots))) => {
                for (answer, slot) in answers.iter().zip(slots) {
                    if *answer == page_share::port::Answer::Shared(slot) {
                        guest.granted(slot.get() % PAGES, slot, None);
                    }
                }
            }
            (Reply::Publications(results), Some(Asked::Publish(about))) => guest.published(&about, &results),
            (Reply::Offers(offers), Some(Asked::Offers)) => {
                for offer in offers {
                    if !Guest::is_page(offer.gfn) {
                        return Err(format!("{offer:?} is for no page of the guest"));
                    }
                    guest.granted(offer.gfn.get(), offer.slot, None);
                }
            }
            (Reply::Done, Some(Asked::Restate)) => self.count(Count::Restated),
            (Reply::Done, Some(Asked::Other)) => {}
            (reply, asked) => return Err(format!("{reply:?} is no answer to {asked:?}")),
        }
        Ok(())
    }

    /// A guest that comes back to the pool it knows says what it has mapped.
    fn welcomed(&mut self, number: u64, generation: PoolGeneration, held: &[Slot]) {
        let Some(guest) = self
            .guests
            .iter_mut()
            .find(|guest| guest.connection == Some(number))
        else {
            return;
        };
        if guest.generation == Some(generation) {
            guest.asked = Some(Asked::Restate);
            let connection = self.connection(number);
            connection
                .into_iter()
                .for_each(|to| to.requests.push_back(Request::Restate(held.to_vec())));
        } else {
            guest.generation = Some(generation);
            // References to the pool before need no release.
            guest.returns.clear();
        }
    }
}

pub(super) fn named(contents: &mut Contents, about: &[(u32, Content)]) -> Vec<Report> {
    let named = about.iter().map(|&(gfn, content)| Report {
        gfn: Gfn::new(gfn),
        sketch: contents.sketch(content),
    });
    named.collect()
}
