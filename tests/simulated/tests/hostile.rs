//! Processes that break the protocol: cut off and counted, the others unharmed, the manager not kept busy.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use levy_protocol::link::{FromManager, FromVmm, Hello, Line, Lines, Report};
use levy_protocol::run_dir::Sockets;
use page_share::port::{Port, PortError, Publication, Refusal, Report as PageReport};
use page_share::{Gfn, PageHasher, Slot, SocketPort};
use simulated::{Guest, GuestOptions, Manager, PATIENCE, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_simulated");

/// Pages of the hostile guest.
const PAGES: u32 = 256;

/// A manager hangs up on who is silent for 30 s.
const BEFORE_SILENCE: Duration = Duration::from_secs(25);

/// A connection of a process that was admitted.
struct Vandal {
    stream: UnixStream,
    lines: Lines,
}

impl Vandal {
    /// Introduces this process as `name`; the reason where it is refused.
    fn enter(manager: &Manager, name: &str) -> Result<Self, String> {
        Self::introduce(manager, hello(name))
    }

    /// The same as the guest that `hello` describes.
    fn introduce(manager: &Manager, hello: Hello) -> Result<Self, String> {
        let stream = UnixStream::connect(Sockets::in_dir(manager.dir()).guests).unwrap();
        stream.set_read_timeout(Some(BEFORE_SILENCE)).unwrap();
        let mut vandal = Self {
            stream,
            lines: Lines::default(),
        };
        vandal.say(&FromVmm::Hello(hello));
        match vandal.lines.next::<FromManager>(&mut &vandal.stream) {
            Ok(Line::Message(FromManager::Welcome(_))) => Ok(vandal),
            Ok(Line::Message(FromManager::Refused { reason })) => Err(reason),
            other => Err(format!("{other:?}")),
        }
    }

    /// Enters as soon as it is let in again.
    fn return_to(manager: &Manager, name: &str) -> Self {
        let began = Instant::now();
        loop {
            match Self::enter(manager, name) {
                Ok(vandal) => return vandal,
                Err(reason) => assert!(began.elapsed() < PATIENCE, "{reason}"),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn say(&mut self, message: &FromVmm) {
        let _ = Lines::send(&mut &self.stream, message);
    }

    /// Whether the other end hangs up before it would for silence alone.
    fn is_cut_off(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match (&self.stream).read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }

    fn port(manager: &Manager) -> std::io::Result<SocketPort> {
        let pages = Sockets::in_dir(manager.dir()).pages;
        SocketPort::attach(PAGES, move || UnixStream::connect(&pages))
    }
}

/// A process that ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that introduces itself as `name` and then says `line`.
fn vandal_that_says(manager: &Manager, name: &str, line: &[u8]) -> Process {
    let mut command = Command::new(PROGRAM);
    command
        .args(["protocol", "--name", name, "--dir"])
        .arg(manager.dir());
    command.arg("--says").arg(OsStr::from_bytes(line));
    Process(command.stderr(Stdio::null()).spawn().unwrap())
}

fn hello(name: &str) -> Hello {
    let hello = Hello::new(name, u64::from(PAGES) * 4096).with_min(4096);
    hello.in_domain("simulated")
}

/// CPU that the manager uses while `work` is done, as part of one.
fn load<T>(manager: &Manager, work: impl FnOnce() -> T) -> (f64, T) {
    let (began, before) = (Instant::now(), manager.view().cpu_us);
    let done = work();
    let used = Duration::from_micros(manager.view().cpu_us - before);
    (used.as_secs_f64() / began.elapsed().as_secs_f64(), done)
}

/// Waits for this many more reports, of all guests together.
fn until_reports(manager: &Manager, more: u64) {
    let enough = manager.view().doors.reports + more;
    until("reports", || manager.view().doors.reports >= enough);
}

fn witnesses(manager: &Manager) -> Vec<Guest> {
    let names = ["w1", "w2"];
    let start = |name: &str| Guest::start(Path::new(PROGRAM), manager.dir(), GuestOptions::new(name));
    let guests: Vec<_> = names.into_iter().map(start).collect();
    guests[0].until("sharing", |status| status.shared > 500);
    guests
}

fn unharmed(manager: &Manager, witnesses: &mut [Guest]) {
    for guest in witnesses.iter_mut() {
        let view = || manager.client().guest(guest.name()).unwrap();
        until("a fresh report", || view().report_age_seconds < 2.0);
        let seen = view();
        assert!(seen.connected && seen.counters.cut_offs == 0, "{seen:?}");
        assert_eq!((guest.check().wrong, guest.status().wrong), (0, 0));
    }
}

#[test]
fn garbage_second_hellos_and_replays_end_the_connection() {
    let manager = Manager::start(Path::new(PROGRAM), 256).asked_by_another();
    let mut witnesses = witnesses(&manager);
    let cases: [&[u8]; 4] = [
        b"\xFF\x01 what",
        b"{\"type\":\"report\",\"pages\":{}}",
        b"{\"type\":\"orders\"}",
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    ];
    // Each in a process of its own, which is one guest: what is kept out starts no other process for that.
    for (number, bytes) in cases.into_iter().enumerate() {
        let name = format!("v{number}");
        let _vandal = vandal_that_says(&manager, &name, bytes);
        until("the cut", || {
            let guest = manager.client().guest(&name);
            guest.is_ok_and(|guest| guest.counters.cut_offs >= 1)
        });
    }
    let mut vandal = Vandal::enter(&manager, "replays").unwrap();
    vandal.say(&FromVmm::Hello(hello("replays")));
    assert!(vandal.is_cut_off());
    let refused = Vandal::enter(&manager, "replays").err().unwrap_or_default();
    assert!(refused.contains("cut off for breaking the protocol"), "{refused}");
    let refused = Vandal::enter(&manager, "another").err().unwrap_or_default();
    assert!(
        refused.contains("runs the guest \"replays\" already"),
        "{refused}"
    );
    let view = manager.view();
    assert!(
        view.doors.cut_offs >= 5 && view.doors.refused >= 1,
        "{:?}",
        view.doors
    );
    assert_eq!(manager.client().guest("replays").unwrap().counters.cut_offs, 1);
    // It is let in again once its time is over.
    drop(Vandal::return_to(&manager, "replays"));
    unharmed(&manager, &mut witnesses);
}

#[test]
fn impossible_numbers_change_nothing() {
    let manager = Manager::start(Path::new(PROGRAM), 256).asked_by_another();
    let mut witnesses = witnesses(&manager);
    let mut vandal = Vandal::enter(&manager, "liar").unwrap();
    let mut report = Report {
        written_per_second: u64::MAX,
        store_bytes: u64::MAX,
        cow_breaks: u64::MAX,
        pages_in: u64::MAX,
        sent_us: u64::MAX,
        ..Report::default()
    };
    report.activity.last = (u32::MAX, 1);
    report.activity.periods = u64::MAX;
    report.old_pools = vec![
        levy_protocol::link::PoolSize {
            id: 1,
            bytes: u64::MAX
        };
        100
    ];
    vandal.say(&FromVmm::Report(report.clone()));
    report.pages.private = u64::MAX;
    report.pages.shared = u64::MAX;
    vandal.say(&FromVmm::Report(report));
    // Of the two witnesses, so that rounds were planned with the lies.
    until_reports(&manager, 8);
    let view = manager.view();
    assert!(view.free_bytes.is_some_and(|free| free > 0), "{view:?}");
    assert!(view.spent.old_pools_bytes <= view.promised_bytes, "{view:?}");
    unharmed(&manager, &mut witnesses);
}

#[test]
fn floods_are_ended_and_cost_the_manager_little() {
    let manager = Manager::start(Path::new(PROGRAM), 256).asked_by_another();
    let mut witnesses = witnesses(&manager);
    let mut vandal = Vandal::enter(&manager, "flood").unwrap();
    let line = Lines::encode(&FromVmm::Report(Report::default())).unwrap();
    let mut sent = 0_u64;
    while vandal.stream.write_all(&line).is_ok() {
        sent += 1;
        assert!(sent < 1_000_000, "nobody stops the flood");
    }
    assert!(vandal.is_cut_off());
    // Knocking without end, at both doors, for three seconds.
    let (load, knocks) = load(&manager, || {
        let (began, mut knocks) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(3) || knocks <= 100 {
            let doors = Sockets::in_dir(manager.dir());
            for door in [doors.guests, doors.pages] {
                knocks += u32::from(UnixStream::connect(door).is_ok());
            }
        }
        knocks
    });
    println!("{knocks} knocks, manager {:.0} % of a CPU", load * 100.0);
    assert!(load < 0.4, "{knocks} {load}");
    unharmed(&manager, &mut witnesses);
}

#[test]
fn forged_references_and_pages_that_are_not_what_they_are_called_are_cut_off() {
    let manager = Manager::start(Path::new(PROGRAM), 256).asked_by_another();
    let mut witnesses = witnesses(&manager);
    let domain = || manager.view().domains["simulated"];

    // References that it never had.
    let vandal = Vandal::enter(&manager, "forger").unwrap();
    let mut port = Vandal::port(&manager).unwrap();
    let generation = port.session().generation;
    let slots: Vec<_> = (0..64).map(Slot::new).collect();
    let references = domain().references;
    assert!(matches!(
        port.release(generation, &slots),
        Err(PortError::Invalid(_))
    ));
    until("the cut", || !manager.client().guest("forger").unwrap().connected);
    assert!(matches!(port.release(generation, &slots), Err(PortError::Gone)));
    assert!(domain().invalid_calls >= 1);
    // There may be more by now: the others merge on.
    let now = domain().references;
    assert!(
        now > references / 2,
        "others' references stay: {now} of {references}"
    );
    drop((vandal, port));

    // Pages under the names of others: first reported as a twin of the witnesses' pages would be.
    let _vandal = Vandal::return_to(&manager, "forger");
    let mut port = Vandal::port(&manager).unwrap();
    let hasher = PageHasher::new(&port.session().key);
    let sketch = |page: u32| hasher.sketch(&[page as u8; 4096]);
    let pages: Vec<_> = (0..128)
        .map(|page| PageReport {
            gfn: Gfn::new(page),
            sketch: sketch(page),
        })
        .collect();
    let forged = vec![[0xEE; 4096]; pages.len()];
    let published = domain().published;
    let mut results = Vec::new();
    let cut = (0..100).any(|_| port.publish(&pages, &forged, &mut results).is_err());
    assert!(cut, "it may forge for ever");
    let counted = domain();
    assert!(counted.refused >= 256, "{counted:?}");
    println!(
        "{} published meanwhile, by those who may",
        counted.published - published
    );
    until("the cut", || !manager.client().guest("forger").unwrap().connected);
    assert!(manager.client().guest("forger").unwrap().counters.cut_offs >= 2);
    unharmed(&manager, &mut witnesses);
}

/// Pages that the maker of pages says its guest has, and how many it makes at most: more than fit the budget.
const MADE: u32 = 98_304;

/// Publishes pages that no guest has, each named first as one page of this guest and then as another, until the pool
/// takes no more.
fn make_pages(port: &mut SocketPort, mut look: impl FnMut()) {
    let hasher = PageHasher::new(&port.session().key);
    let (mut answers, mut results) = (Vec::new(), Vec::new());
    let mut refused = 0;
    for first in (0..MADE).step_by(128) {
        let page = |number: u32| {
            let mut page = [0xAB; 4096];
            page[..4].copy_from_slice(&number.to_le_bytes());
            page
        };
        let bytes: Vec<_> = (first..first + 128).map(page).collect();
        let named = |shift: u32| -> Vec<PageReport> {
            let numbers = first..first + 128;
            let named = numbers.zip(&bytes).map(|(number, page)| PageReport {
                gfn: Gfn::new(number + shift),
                sketch: hasher.sketch(page),
            });
            named.collect()
        };
        port.report(&named(0), &mut answers).unwrap();
        port.publish(&named(MADE), &bytes, &mut results).unwrap();
        let full = Publication::Refused(Refusal::PoolFull);
        refused += u32::from(results.contains(&full));
        look();
        if refused > 100 {
            return;
        }
        if results.contains(&full) {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn pages_that_a_guest_makes_up_fill_no_pool_beyond_the_budget_and_take_no_minimum() {
    const BUDGET: u64 = 256;
    const MINIMUM: u64 = 96;
    let manager = Manager::start(Path::new(PROGRAM), BUDGET).asked_by_another();
    let options = GuestOptions::new("w").mib(128).min_mib(MINIMUM).all_different();
    let mut witness = Guest::start(Path::new(PROGRAM), manager.dir(), options.rate(200));
    let maker = Hello {
        size: u64::from(MADE) * 2 * 4096,
        ..hello("maker")
    };
    let _vandal = Vandal::introduce(&manager, maker).unwrap();
    let pages = Sockets::in_dir(manager.dir()).pages;
    let mut port = SocketPort::attach(MADE * 2, move || UnixStream::connect(&pages)).unwrap();
    let mut most = 0;
    make_pages(&mut port, || {
        let view = manager.view();
        let pool = u64::from(view.domains["simulated"].pool_pages) * 4096;
        most = most.max(pool);
        let promised = (MINIMUM << 20) + pool;
        assert!(promised <= BUDGET << 20, "a pool of {} MiB", pool >> 20);
    });
    println!("most in the pool: {} MiB", most >> 20);
    assert!(most > 16 << 20, "what is not promised may be used: {most}");
    let view = manager.client().guest("w").unwrap();
    let has = view.memory.private_bytes + view.memory.shared_bytes + view.memory.store_bytes;
    assert!(has + (2 << 20) >= MINIMUM << 20, "{:?}", view.memory);
    witness.assert_right();
}

#[test]
fn asking_about_pages_without_end_takes_a_part_of_a_cpu_only() {
    let manager = Manager::start(Path::new(PROGRAM), 256).asked_by_another();
    let mut witnesses = witnesses(&manager);
    let _vandal = Vandal::enter(&manager, "greedy").unwrap();
    let mut port = Vandal::port(&manager).unwrap();
    let hasher = PageHasher::new(&port.session().key);
    let report = |page: u32| PageReport {
        gfn: Gfn::new(page),
        sketch: hasher.sketch(&[page as u8; 4096]),
    };
    let pages: Vec<_> = (0..PAGES).map(report).collect();
    let mut answers = Vec::new();
    // What may be saved up is used up first.
    let saved = Instant::now();
    while saved.elapsed() < Duration::from_secs(2) {
        port.report(&pages, &mut answers).unwrap();
    }
    let (load, calls) = load(&manager, || {
        let (began, mut calls) = (Instant::now(), 0_u64);
        while began.elapsed() < Duration::from_secs(5) {
            port.report(&pages, &mut answers).unwrap();
            calls += 1;
        }
        calls
    });
    println!(
        "{calls} calls of {PAGES} pages, manager {:.0} % of a CPU",
        load * 100.0
    );
    // A quarter for this connection, and what the witnesses need.
    assert!(load < 0.6, "{load}");
    unharmed(&manager, &mut witnesses);
}

#[test]
fn clients_of_the_api_that_do_not_read_delay_no_guest() {
    let manager = Manager::start(Path::new(PROGRAM), 256).asked_by_another();
    let mut witnesses = witnesses(&manager);
    // A busy machine may keep the witnesses themselves from reporting: then once more.
    until("reports while clients do not read", || {
        reports_beside_slow_clients(&manager) >= 5
    });
    let times = manager.view().doors;
    println!("99 of 100 reports known within {} us", times.handling_p99_us);
    unharmed(&manager, &mut witnesses);
}

/// How many reports the manager takes in while 200 clients of its API send half a request, or read no answer.
fn reports_beside_slow_clients(manager: &Manager) -> u64 {
    let socket = levy_protocol::run_dir::api_socket(manager.dir());
    let before = manager.view().doors.reports;
    let mut slow: Vec<_> = (0..200)
        .filter_map(|number| {
            let mut stream = UnixStream::connect(&socket).ok()?;
            let text: &[u8] = match number % 3 {
                0 => b"",
                1 => b"GET /guests HTTP/1.1\r\nHost: x\r\n\r\n",
                _ => b"PUT /host HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
            };
            stream.write_all(text).ok()?;
            Some(stream)
        })
        .collect();
    std::thread::sleep(Duration::from_secs(4));
    slow.clear();
    until("an answer for those who behave", || {
        manager.client().host().is_ok()
    });
    manager.view().doors.reports - before
}

#[test]
fn a_manager_without_descriptors_says_so_and_serves_on_once_it_has_some() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let manager = Manager::start(Path::new(PROGRAM), 256).asked_by_another();
    let mut witnesses = witnesses(&manager);
    let pid = Pid::from_raw(manager.view().pid.cast_signed());
    let most = getrlimit(Resource::Nofile);
    let limit = |current| {
        let limit = Rlimit {
            current: Some(current),
            ..most
        };
        prlimit(pid, Resource::Nofile, limit).unwrap();
    };
    // What it has, and room for no more.
    limit(manager.footprint().fds as u64);
    let refused = Vandal::enter(&manager, "late").err().unwrap_or_default();
    assert!(
        refused.contains("open files") && refused.contains("ulimit -n") && !refused.contains("domain"),
        "the refusal names the limit and the cure: {refused}"
    );
    // A process that comes again and again costs it little, and the others nothing.
    for _ in 0..20 {
        assert!(Vandal::enter(&manager, "late").is_err());
    }
    limit(4096);
    drop(Vandal::return_to(&manager, "late"));
    let doors = manager.view().doors;
    assert!(doors.starved >= 1, "{doors:?}");
    unharmed(&manager, &mut witnesses);
}
