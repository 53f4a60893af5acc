//! Region and manager over a socket, with everything that can happen to one.

mod guest_process;

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guest_process::Process;
use page_share::port::{Answer, Invalid, Offer, Port, PortError, Publication, Reconnected, Refusal, Report};
use page_share::wire::Request;
use page_share::{
    AnonymousMemory, Domain, Gfn, LocalManager, Options, PAGE_SIZE, Page, PageHasher, Peer, Region,
    ServeError, Slot, SocketPort, serve,
};

const PAGES: u32 = 256;

type Served = JoinHandle<Result<(), ServeError>>;

/// A manager and one process that it knows.
#[derive(Clone)]
struct Host {
    manager: LocalManager,
    process: Arc<Process>,
    served: Arc<Mutex<Vec<Served>>>,
}

impl Host {
    fn new() -> Self {
        Self {
            manager: LocalManager::new(Domain::new(1000).unwrap()),
            process: Arc::new(Process::start()),
            served: Arc::default(),
        }
    }

    /// Another process of the same host.
    fn another(&self) -> Self {
        Self {
            process: Arc::new(Process::start()),
            ..self.clone()
        }
    }

    fn connect(&self) -> std::io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let (manager, process) = (self.manager.clone(), self.process.watch.clone());
        let peer = Peer {
            pages: PAGES,
            process,
        };
        let serving = move || serve(theirs, &manager, peer);
        self.served.lock().unwrap().push(std::thread::spawn(serving));
        Ok(ours)
    }

    fn attach(&self) -> SocketPort {
        let host = self.clone();
        SocketPort::attach(PAGES, move || host.connect()).unwrap()
    }

    /// How the connection made last ended.
    fn ending(&self) -> Result<(), ServeError> {
        let last = self.served.lock().unwrap().pop().unwrap();
        last.join().unwrap()
    }
}

fn page(content: u8) -> Page {
    [content; PAGE_SIZE]
}

fn named(port: &SocketPort, pages: &[(u32, u8)]) -> Vec<Report> {
    let hasher = PageHasher::new(&port.session().key);
    let named = |&(gfn, content): &(u32, u8)| Report {
        gfn: Gfn::new(gfn),
        sketch: hasher.sketch(&page(content)),
    };
    pages.iter().map(named).collect()
}

fn report(port: &mut SocketPort, pages: &[(u32, u8)]) -> Vec<Answer> {
    let mut answers = Vec::new();
    port.report(&named(port, pages), &mut answers).unwrap();
    answers
}

fn publish(port: &mut SocketPort, pages: &[(u32, u8)]) -> Result<Vec<Publication>, PortError> {
    let mut results = Vec::new();
    let bytes: Vec<_> = pages.iter().map(|&(_, content)| page(content)).collect();
    port.publish(&named(port, pages), &bytes, &mut results)?;
    Ok(results)
}

fn polls_readable(port: &SocketPort) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd = port.offers_ready();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
}

#[test]
fn the_whole_conversation_crosses_the_socket() {
    let host = Host::new();
    let (mut a, mut b) = (host.attach(), host.another().attach());
    assert_ne!(a.session().guest, b.session().guest);
    let run: Vec<_> = (0..100).map(|i| (i + 50, i as u8 + 1)).collect();
    assert!(report(&mut a, &run).iter().all(|answer| *answer == Answer::Noted));
    assert!(
        report(&mut b, &run)
            .iter()
            .all(|answer| *answer == Answer::Publish)
    );
    assert!(!polls_readable(&a));
    let granted = publish(&mut b, &run).unwrap();
    assert!(polls_readable(&a));
    let mut offers = Vec::new();
    a.offers(&mut offers).unwrap();
    assert!(!polls_readable(&a));
    for (place, (gfn, content)) in run.iter().enumerate() {
        let slot = Slot::new(place as u32);
        assert_eq!(granted[place], Publication::Granted(slot));
        let gfn = Gfn::new(*gfn);
        assert_eq!(offers[place], Offer { gfn, slot });
        let mut bytes = [0; PAGE_SIZE];
        a.session().pool.read_exact_at(&mut bytes, slot.offset()).unwrap();
        assert_eq!(bytes, page(*content));
    }
    assert!(
        a.session().pool.write_at(b"x", 0).is_err(),
        "the pool came read-only"
    );
    let generation = a.session().generation;
    let slots: Vec<_> = offers.iter().map(|offer| offer.slot).collect();
    a.release(generation, &slots).unwrap();
    b.release(generation, &slots).unwrap();
    b.withdraw(&[Gfn::new(1)]).unwrap();
    let error = b.release(generation, &slots[..1]);
    assert!(matches!(error, Err(PortError::Invalid(Invalid::NotHeld(_)))));
    assert!(
        matches!(b.withdraw(&[Gfn::new(1)]), Err(PortError::Gone)),
        "who names what it does not hold is cut off"
    );
    assert_eq!(b.reconnect(&[]).unwrap(), Reconnected::SamePool);
    assert!(matches!(
        b.withdraw(&[Gfn::new(PAGES)]),
        Err(PortError::Invalid(Invalid::Gfn { .. }))
    ));
    host.manager.with(|domain| domain.check().unwrap());
    assert_eq!(host.manager.with(|domain| domain.sizes().pool_pages), Some(0));
}

#[test]
fn a_closed_connection_releases_nothing_and_its_process_may_return() {
    let host = Host::new();
    let mut a = host.attach();
    report(&mut a, &[(1, 5), (2, 5), (3, 6)]);
    let slot = match publish(&mut a, &[(2, 5)]).unwrap()[..] {
        [Publication::Granted(slot)] => slot,
        ref other => panic!("{other:?}"),
    };
    let before = host.manager.with(|domain| domain.sizes().references);
    assert_eq!(before, Some(2));
    assert_eq!(a.reconnect(&[slot, slot]).unwrap(), Reconnected::SamePool);
    assert_eq!(host.manager.with(|domain| domain.sizes().references), before);
    assert_eq!(a.reconnect(&[slot]).unwrap(), Reconnected::SamePool);
    assert_eq!(host.manager.with(|domain| domain.sizes().references), Some(1));
    let claims_too_much = a.reconnect(&[slot, slot]);
    assert!(matches!(claims_too_much, Err(PortError::Gone)));
    assert!(matches!(host.ending(), Err(ServeError::Protocol(_))));
    assert_eq!(host.manager.with(|domain| domain.sizes().references), Some(1));
}

#[test]
fn a_manager_that_dies_in_the_middle_of_publishing_is_gone_and_a_new_one_takes_over() {
    let host = Host::new();
    let mut a = host.attach();
    report(&mut a, &[(1, 5), (2, 5)]);
    let held = publish(&mut a, &[(2, 5)]).unwrap();
    let old = a.session().clone();
    report(&mut a, &[(3, 6), (4, 6)]);
    host.manager.stop();
    assert!(matches!(publish(&mut a, &[(4, 6)]), Err(PortError::Gone)));
    assert!(matches!(host.ending(), Err(ServeError::Stopped)));
    assert!(matches!(publish(&mut a, &[(4, 6)]), Err(PortError::Gone)));
    assert!(
        matches!(a.reconnect(&[]), Err(PortError::Gone)),
        "still nobody there"
    );
    assert_eq!(held, [Publication::Granted(Slot::new(0))]);
    let mut kept = [0; PAGE_SIZE];
    old.pool.read_exact_at(&mut kept, 0).unwrap();
    assert_eq!(kept, page(5), "what was mapped stays");
    host.manager.restart(Domain::new(1000).unwrap());
    assert_eq!(a.reconnect(&[Slot::new(0)]).unwrap(), Reconnected::FreshPool);
    assert_ne!(a.session().generation, old.generation);
    assert_eq!(report(&mut a, &[(1, 5)]), [Answer::Noted]);
    host.manager.with(|domain| domain.check().unwrap());
}

#[test]
fn a_manager_that_answers_nonsense_counts_as_gone() {
    for nonsense in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        &[4, 0, 0, 0, 1, 136, 0, 0, 9, 9, 9, 9],
        &[],
    ] {
        let connect = move || {
            let (ours, mut theirs) = UnixStream::pair()?;
            std::thread::spawn(move || {
                theirs.write_all(nonsense).unwrap();
                let _ = theirs.shutdown(std::net::Shutdown::Write);
                let _ = theirs.read_to_end(&mut Vec::new());
            });
            Ok(ours)
        };
        assert!(SocketPort::attach(PAGES, connect).is_err());
    }
}

#[test]
fn a_process_may_be_wrong_about_half_of_what_it_sends_and_no_more() {
    let host = Host::new();
    let mut a = host.attach();
    let mut send = |said: u8, sent: u8, count: u32| {
        let pages: Vec<_> = (0..count).map(|gfn| (gfn, said)).collect();
        let bytes = vec![page(sent); pages.len()];
        let mut results = Vec::new();
        a.publish(&named(&a, &pages), &bytes, &mut results)
            .map(|()| results)
    };
    for _ in 0..4 {
        send(1, 1, 100).unwrap();
    }
    for _ in 0..4 {
        let mismatch = Publication::Refused(Refusal::SketchMismatch);
        assert_eq!(send(1, 2, 100).unwrap(), vec![mismatch; 100]);
    }
    send(1, 2, 1).unwrap();
    assert!(matches!(send(1, 1, 1), Err(PortError::Gone)));
    assert!(matches!(host.ending(), Err(ServeError::Protocol(_))));
}

/// Sends `bytes` as the whole conversation and says how the manager took it.
fn conversation(host: &Host, bytes: &[u8]) -> Result<(), ServeError> {
    let mut stream = host.connect().unwrap();
    // The manager may hang up before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.read_to_end(&mut Vec::new());
    host.ending()
}

#[test]
fn a_process_that_breaks_the_protocol_loses_its_connection_and_nothing_else() {
    let host = Host::new();
    let mut honest = host.another().attach();
    let hello = |pages| {
        let mut bytes = Vec::new();
        Request::Hello(pages).encode(&mut bytes);
        bytes
    };
    let with = |mut bytes: Vec<u8>, request: Request<'_>| {
        request.encode(&mut bytes);
        bytes
    };
    assert!(conversation(&host, b"").is_ok());
    let slots = vec![Slot::new(1); 4096];
    let too_many = |mut bytes: Vec<u8>| {
        for _ in 0..3 {
            Request::Held(slots.clone().into()).encode(&mut bytes);
        }
        bytes
    };
    for broken in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        hello(PAGES)[..7].to_vec(),
        hello(PAGES + 1),
        too_many(hello(PAGES)),
        with(hello(PAGES), Request::Held(Vec::new().into())),
        with(hello(PAGES), Request::Restate(5)),
        with(
            with(hello(PAGES), Request::Held(slots.clone().into())),
            Request::Restate(4097),
        ),
        with(
            with(hello(PAGES), Request::Held(slots.clone().into())),
            Request::Restate(4096),
        ),
        with(Vec::new(), Request::Offers),
        with(Vec::new(), Request::Held(slots.clone().into())),
        with(hello(PAGES), Request::Hello(PAGES)),
        [&hello(PAGES)[..], &[0xff; 100]].concat(),
    ] {
        conversation(&host, &broken).expect_err(&format!("{broken:02x?}"));
    }
    assert_eq!(report(&mut honest, &[(1, 5)]), [Answer::Noted]);
    host.manager.with(|domain| domain.check().unwrap());
}

#[test]
fn a_guest_whose_welcome_was_lost_can_come_again() {
    let host = Host::new();
    // Attached, and gone before it read a byte.
    let mut bytes = Vec::new();
    Request::Hello(PAGES).encode(&mut bytes);
    let _ = conversation(&host, &bytes);
    assert_eq!(host.manager.with(|domain| domain.sizes().guests), Some(1));
    let mut port = host.attach();
    assert_eq!(report(&mut port, &[(1, 5)]), [Answer::Noted]);
    assert_eq!(host.manager.with(|domain| domain.sizes().guests), Some(1));
}

#[test]
fn a_manager_that_is_gone_is_looked_for_less_and_less_often_and_found_soon_when_it_is_back() {
    let host = Host::new();
    let (up, tries) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    let connect = {
        let (host, up, tries) = (host.clone(), up.clone(), tries.clone());
        move || {
            tries.fetch_add(1, Ordering::SeqCst);
            match up.load(Ordering::SeqCst) {
                true => host.connect(),
                false => Err(std::io::ErrorKind::ConnectionRefused.into()),
            }
        }
    };
    let memory = AnonymousMemory::new(PAGES).unwrap();
    (0..PAGES).for_each(|at| memory.write_page(at, &page(1 + (at / 2) as u8)));
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
    region
        .connect(Box::new(SocketPort::attach(PAGES, connect).unwrap()))
        .unwrap();
    (0..3).for_each(|_| region.scan_pass());
    assert_eq!(region.stats().shared, u64::from(PAGES));
    assert_eq!(tries.load(Ordering::SeqCst), 1);
    up.store(false, Ordering::SeqCst);
    host.manager.stop();
    // Thousands of steps: 10, 20, 40, 80 and 160 ms after one another it is looked for.
    let (start, mut steps) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(600) {
        region.scan_step(64);
        memory.write_page(steps % PAGES, &page(2));
        steps += 1;
    }
    let made = tries.load(Ordering::SeqCst) - 1;
    assert!((2..=8).contains(&made), "{made} tries in {steps} steps");
    host.manager.restart(Domain::new(1000).unwrap());
    up.store(true, Ordering::SeqCst);
    let back = Instant::now();
    while host.manager.with(|domain| domain.sizes().pool_pages).unwrap() == 0 {
        assert!(back.elapsed() < Duration::from_secs(300), "never found again");
        region.scan_step(64);
    }
}
