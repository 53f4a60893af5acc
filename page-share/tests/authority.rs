//! Who may speak for a guest: its newest connection, while its process lives, and nothing else. What comes late, from a
//! connection that was taken over or from one that outlived its guest, changes nothing.

mod guest_process;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use guest_process::Process;
use page_share::port::{Answer, Invalid, PortError, Publication, Report};
use page_share::wire::{Direction, HEADER, Header, Reply, Request};
use page_share::{
    Attachment, Domain, DomainKey, Epoch, Gfn, GuestProcess, LocalManager, PAGE_SIZE, Page, PageHasher, Peer,
    Sizes, Slot, serve,
};

const PAGES: u32 = 64;
const KEY: [u8; 32] = [5; 32];

fn manager() -> LocalManager {
    LocalManager::new(Domain::with_key(DomainKey::from_bytes(KEY), 1000).unwrap())
}

fn sizes(manager: &LocalManager) -> Sizes {
    let sizes = manager.with(|domain| {
        domain.check().unwrap();
        domain.sizes()
    });
    sizes.unwrap()
}

fn page(content: u8) -> Page {
    [content; PAGE_SIZE]
}

fn named(pages: &[(u32, u8)]) -> Vec<Report> {
    let hasher = PageHasher::new(&DomainKey::from_bytes(KEY));
    let named = |&(gfn, content): &(u32, u8)| Report {
        gfn: Gfn::new(gfn),
        sketch: hasher.sketch(&page(content)),
    };
    pages.iter().map(named).collect()
}

/// One connection, as bytes: what is sent on it is read by the manager when it is, whatever else has happened by then.
struct Wire(UnixStream);

impl Wire {
    fn open(manager: &LocalManager, process: &GuestProcess) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (manager, process) = (manager.clone(), process.clone());
        let peer = Peer {
            pages: PAGES,
            process,
        };
        std::thread::spawn(move || serve(theirs, &manager, peer));
        Self(ours)
    }

    /// Opens a connection and is welcomed on it.
    fn join(manager: &LocalManager, process: &GuestProcess) -> Self {
        let mut wire = Self::open(manager, process);
        let reply = wire.ask(&Request::Hello(PAGES));
        assert!(matches!(reply, Some(Reply::Welcome(_))), "{reply:?}");
        wire
    }

    fn send(&mut self, request: &Request<'_>) {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        // The manager may have hung up.
        let _ = self.0.write_all(&bytes);
    }

    /// The reply to a request; `None` when the connection ends instead.
    fn ask(&mut self, request: &Request<'_>) -> Option<Reply<'static>> {
        self.send(request);
        let mut header = [0; HEADER];
        self.0.read_exact(&mut header).ok()?;
        let header = Header::parse(header, Direction::Reply).unwrap();
        let mut payload = vec![0; header.length()];
        self.0.read_exact(&mut payload).ok()?;
        Some(Reply::decode(header, &payload).unwrap())
    }

    /// Publishes pages with one content, and returns the slot.
    fn publish(&mut self, pages: [u32; 2], content: u8) -> Slot {
        let reports = named(&pages.map(|gfn| (gfn, content)));
        self.ask(&Request::Report(reports.clone().into())).unwrap();
        let bytes = [page(content)];
        match self.ask(&Request::Publish(reports[1..].into(), &bytes)) {
            Some(Reply::Publications(results)) => match results[..] {
                [Publication::Granted(slot)] => slot,
                ref other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

fn generation(manager: &LocalManager) -> page_share::PoolGeneration {
    let generation = manager.with(|domain| {
        let guest = domain.attach(1).unwrap();
        let session = domain.session(guest.attachment()).unwrap();
        domain.retire(guest);
        session.generation
    });
    generation.unwrap()
}

/// Every request there is that could take or give something.
fn requests(manager: &LocalManager, slot: Slot) -> Vec<Request<'static>> {
    static BYTES: [Page; 1] = [[9; PAGE_SIZE]];
    let generation = generation(manager);
    vec![
        Request::Release(generation, vec![slot].into()),
        Request::Claim(generation, vec![slot].into()),
        Request::Report(named(&[(1, 9), (2, 7)]).into()),
        Request::Publish(named(&[(3, 9)]).into(), &BYTES),
        Request::Withdraw((0..PAGES).map(Gfn::new).collect::<Vec<_>>().into()),
        Request::Offers,
        Request::Restate(0),
    ]
}

#[test]
fn what_an_older_connection_says_late_changes_nothing() {
    let manager = manager();
    let process = Process::start();
    let count = requests(&manager, Slot::new(0)).len();
    let mut newest = Wire::join(&manager, &process.watch);
    let slot = newest.publish([1, 2], 7);
    for late in 0..count {
        let mut older = newest;
        newest = Wire::join(&manager, &process.watch);
        let before = sizes(&manager);
        assert_eq!(before.references, 2, "another connection drops no reference");
        let request = requests(&manager, slot).swap_remove(late);
        assert_eq!(older.ask(&request), None, "{request:?}");
        assert_eq!(sizes(&manager), before, "{request:?}");
    }
    // The newest may say what it has, and give it back.
    newest.send(&Request::Held(vec![slot].into()));
    assert_eq!(newest.ask(&Request::Restate(1)), Some(Reply::Done));
    let release = Request::Release(generation(&manager), vec![slot].into());
    assert_eq!(newest.ask(&release), Some(Reply::Done));
    assert_eq!(sizes(&manager).references, 0);
}

#[test]
fn a_hello_that_is_read_late_drops_nothing() {
    let manager = manager();
    let process = Process::start();
    let mut late = Wire::open(&manager, &process.watch);
    let mut newest = Wire::join(&manager, &process.watch);
    newest.publish([1, 2], 7);
    // It takes the newest one's place, which then connects again; nothing that may be mapped has gone meanwhile.
    assert!(matches!(
        late.ask(&Request::Hello(PAGES)),
        Some(Reply::Welcome(_))
    ));
    assert_eq!(newest.ask(&Request::Restate(0)), None);
    assert_eq!(sizes(&manager).references, 2);
    let mut again = Wire::join(&manager, &process.watch);
    assert_eq!(again.ask(&Request::Offers).map(|_| ()), Some(()));
    assert_eq!(sizes(&manager).guests, 1);
}

#[test]
fn a_connection_that_outlives_its_guest_speaks_for_nobody() {
    let manager = manager();
    let [evil, victim] = [Process::start(), Process::start()];
    // Both ends of its connection live on: another process was given them.
    let mut stolen = Wire::join(&manager, &evil.watch);
    let mut unused = Wire::open(&manager, &evil.watch);
    let watch = evil.watch.clone();
    let first = manager
        .with(|domain| domain.admit(PAGES, &watch).unwrap())
        .unwrap();
    stolen = {
        drop(stolen);
        Wire::join(&manager, &evil.watch)
    };
    let dead = evil.die();
    assert_eq!(manager.with(|domain| domain.detach(&dead)), Some(true));
    // Guests come and go until the victim gets the dead guest's number.
    manager.with(|domain| {
        while domain
            .attach(1)
            .map(|guest| (guest.attachment().guest(), domain.retire(guest)).0)
            .unwrap()
            .get()
            != first.guest().get().wrapping_sub(1)
        {}
    });
    let mut honest = Wire::join(&manager, &victim.watch);
    let slot = honest.publish([1, 2], 7);
    let taken = manager
        .with(|domain| domain.admit(PAGES, &victim.watch).unwrap())
        .unwrap();
    assert_eq!(taken.guest(), first.guest());
    assert_ne!(taken.epoch(), first.epoch());
    let mut honest = Wire::join(&manager, &victim.watch);
    let before = sizes(&manager);
    let count = requests(&manager, slot).len();
    for late in 0..count {
        let request = requests(&manager, slot).swap_remove(late);
        assert_eq!(stolen.ask(&request), None, "{request:?}");
    }
    assert_eq!(
        unused.ask(&Request::Hello(PAGES)),
        None,
        "a dead guest is not taken back"
    );
    assert_eq!(sizes(&manager), before);
    assert_eq!(before.references, 2);
    assert!(honest.ask(&Request::Offers).is_some());
}

#[test]
fn only_the_proof_that_its_own_process_is_dead_ends_a_guest() {
    let manager = manager();
    let [one, other] = [Process::start(), Process::start()];
    // Watched a second time: another watch, so another guest's.
    let again = GuestProcess::of_child(one.watch.pid()).unwrap();
    let mut wire = Wire::join(&manager, &one.watch);
    wire.publish([1, 2], 7);
    let detach = |dead: &page_share::Dead| manager.with(|domain| domain.detach(dead)).unwrap();
    assert!(!detach(&other.die()));
    assert_eq!(sizes(&manager).references, 2);
    // However the connection ends, it does not prove anything.
    drop(wire);
    let mut wire = Wire::join(&manager, &one.watch);
    assert_eq!(sizes(&manager).references, 2);
    assert!(wire.ask(&Request::Offers).is_some());
    let dead = one.die();
    assert!(!detach(&again.dead().unwrap()));
    assert!(detach(&dead));
    assert!(!detach(&dead), "once");
    let left = sizes(&manager);
    assert_eq!(
        (left.guests, left.references, left.hints, left.pool_pages),
        (0, 0, 0, 0)
    );
    let late = manager.with(|domain| domain.admit(PAGES, &again).map(drop));
    assert!(late.unwrap().is_err(), "a process that is dead is not admitted");
}

#[test]
fn an_invented_attachment_is_refused_before_anything_else_is_looked_at() {
    let mut domain = Domain::new(10).unwrap();
    let guest = domain.attach(4).unwrap();
    let real = guest.attachment();
    let counted = domain.counters();
    for wrong in [1, u64::MAX, 1 << 63] {
        let epoch = Epoch::new(real.epoch().get().wrapping_add(wrong));
        let invented = Attachment::new(real.guest(), epoch);
        let mut answers: Vec<Answer> = Vec::new();
        let too_many = named(&[(99, 1); 5000]);
        let error = domain.report(invented, &too_many, &mut answers).unwrap_err();
        assert!(
            matches!(error, PortError::Superseded(named) if named == real.guest()),
            "{error}"
        );
    }
    assert_eq!(domain.counters(), counted);
    let error = domain.withdraw(real, &[Gfn::new(4)]).unwrap_err();
    assert!(
        matches!(error, PortError::Invalid(Invalid::Gfn { .. })),
        "{error}"
    );
    domain.retire(guest);
    let error = domain.withdraw(real, &[]).unwrap_err();
    assert!(matches!(error, PortError::Superseded(_)), "{error}");
}

#[test]
fn a_guest_does_not_come_back_with_another_size() {
    let mut domain = Domain::new(10).unwrap();
    let process = Process::start();
    domain.admit(PAGES, &process.watch).unwrap();
    let error = domain.admit(PAGES + 1, &process.watch).unwrap_err();
    assert!(error.to_string().contains("64 pages before, now 65"), "{error}");
    assert_eq!(domain.sizes().guests, 1);
}
