//! A manager and a guest's engine over real sockets: admission, sharing through the page socket, orders, a manager
//! that goes away and comes back.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use allocator::Pages;
use levy::engine::{AttendError, Attendant, Duties, Engine, Introduction};
use levy::link::{BalloonReport, Hello, Sharing, VERSION};
use levy::manager::host::{Doors, Host};
use levy::manager::policy::Settings;
use levy::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress};

const MIB: u64 = 1 << 20;

/// What the guest's process was told to do beside its memory.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Stop,
    Pause(bool),
}

/// Notes what it is told.
struct Notes {
    told: Sender<Told>,
    balloon: Arc<Mutex<u64>>,
}

impl Duties for Notes {
    fn balloon(&mut self, pages: u64) {
        *self.balloon.lock().unwrap_or_else(PoisonError::into_inner) = pages;
    }

    fn balloon_report(&self) -> Option<BalloonReport> {
        let pages = *self.balloon.lock().unwrap_or_else(PoisonError::into_inner);
        Some(BalloonReport {
            target_pages: pages,
            actual_pages: pages,
            ..BalloonReport::default()
        })
    }

    fn is_up(&self) -> bool {
        true
    }

    fn stop(&mut self) {
        let _ = self.told.send(Told::Stop);
    }

    fn pause(&mut self, paused: bool) {
        let _ = self.told.send(Told::Pause(paused));
    }
}

fn hello(name: &str, mib: u64) -> Hello {
    Hello {
        version: VERSION,
        name: name.into(),
        size: mib * MIB,
        min: mib * MIB / 4,
        shares: 1000,
        sharing: Sharing::Domain("test".into()),
        control: None,
    }
}

fn manager(dir: &Path, mib: u64) -> Host {
    let settings = Settings::new(Pages::from_mib(mib));
    let host = Host::open(Doors::in_dir(dir), settings, Pages::from_mib(4096)).unwrap();
    let running = host.clone();
    std::thread::spawn(move || running.run());
    host
}

/// A guest of 16 MiB: 2048 pages in 64 different contents, 1024 zero pages, the rest never touched.
fn guest() -> Arc<GuestRam> {
    let ram = Arc::new(GuestRam::new(16 * MIB).unwrap());
    for page in 0..2048_u64 {
        let mut bytes = [0_u8; 4096];
        bytes[..8].copy_from_slice(&(page % 64 + 1).to_le_bytes());
        ram.view().write_slice(&bytes, GuestAddress(page * 4096)).unwrap();
    }
    ram.view()
        .write_slice(&vec![0; 1024 * 4096], GuestAddress(2048 * 4096))
        .unwrap();
    ram
}

fn check(ram: &GuestRam) {
    for page in 0..3072_u64 {
        let mut bytes = [0_u8; 4096];
        ram.view()
            .read_slice(&mut bytes, GuestAddress(page * 4096))
            .unwrap();
        let expected = if page < 2048 { page % 64 + 1 } else { 0 };
        assert_eq!(
            u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            expected,
            "page {page}"
        );
        assert!(bytes[8..].iter().all(|&byte| byte == 0), "page {page}");
    }
}

fn attend(dir: &Path, engine: Engine, name: &str) -> Receiver<Told> {
    let (told, heard) = channel();
    let duties = Notes {
        told,
        balloon: Arc::default(),
    };
    let introduction = Introduction::make(dir, hello(name, 16)).unwrap();
    Attendant::start(introduction, engine, Box::new(duties)).unwrap();
    heard
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{what} did not happen within 30 s"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_guests_equal_pages_become_one_through_the_manager_and_outlive_it() {
    let dir = tempfile::tempdir().unwrap();
    let host = manager(dir.path(), 256);
    let ram = guest();
    let engine = Engine::start(&ram, None).unwrap();
    let region = Arc::clone(engine.region());
    let told = attend(dir.path(), engine, "g1");

    until("merging", || {
        let stats = region.stats();
        // What is away for a sample at this moment is merged when it is back.
        stats.shared + stats.zero + stats.sampled == 3072 && stats.shared > 0 && stats.zero > 0
    });
    check(&ram);
    until("the guest's report", || {
        host.roster()
            .guests()
            .any(|(member, _)| member.shared() >= Pages::new(2972))
    });
    assert_eq!(
        host.roster().domains()["test"].with(|domain| domain.sizes().pool_pages),
        Some(64)
    );
    assert!(host.roster().spent().pools >= Pages::new(64));

    let id = host
        .roster()
        .guests()
        .next()
        .map(|(member, _)| member.id)
        .unwrap();
    host.tell(id, &levy::link::FromManager::Pause);
    host.tell(id, &levy::link::FromManager::Stop);
    assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(Told::Pause(true)));
    assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(Told::Stop));

    host.close();
    drop(host);
    check(&ram);
    ram.view()
        .write_slice(&7_u64.to_le_bytes(), GuestAddress(8))
        .unwrap();
    let mut word = [0; 8];
    ram.view().read_slice(&mut word, GuestAddress(8)).unwrap();
    assert_eq!(u64::from_le_bytes(word), 7);
}

#[test]
fn refusals_name_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let host = manager(dir.path(), 256);
    let refusal = |hello: Hello| match Introduction::make(dir.path(), hello) {
        Err(AttendError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let too_large = Hello {
        min: 512 * MIB,
        ..hello("big", 1024)
    };
    assert!(refusal(too_large).contains("MiB"), "names sizes");
    assert!(
        refusal(Hello {
            min: 2 * MIB,
            ..hello("odd", 1)
        })
        .contains("min")
    );
    assert!(refusal(hello("no spaces", 16)).contains("no guest name"));
    assert!(
        refusal(Hello {
            shares: 0,
            ..hello("none", 16)
        })
        .contains("shares")
    );
    assert!(
        refusal(Hello {
            version: VERSION + 1,
            ..hello("new", 16)
        })
        .contains("version")
    );

    let kept = Introduction::make(dir.path(), hello("twin", 16)).unwrap();
    assert!(refusal(hello("twin", 16)).contains("running already"));
    drop(kept);
    host.close();
    let gone = Introduction::make(dir.path(), hello("late", 16)).unwrap_err();
    assert!(gone.to_string().contains("levy host"), "{gone}");
}

#[test]
fn a_second_manager_in_the_same_place_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let host = manager(dir.path(), 256);
    let settings = Settings::new(Pages::from_mib(256));
    let error = Host::open(Doors::in_dir(dir.path()), settings, Pages::ZERO).unwrap_err();
    assert!(
        error.to_string().contains("another manager is running"),
        "{error}"
    );
    host.close();
}
