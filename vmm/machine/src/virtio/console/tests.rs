//! The console device under honest and hostile drivers and readers.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use super::*;
use crate::virtio::testing::{BUFFERS, Driver, NEXT, WRITE, desc, survive_hostile_rings};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

struct Bench {
    driver: Driver,
    console: Arc<Mutex<Console>>,
    handle: ConsoleHandle,
    seen: Arc<Mutex<Vec<String>>>,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("agent")).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let sink = Box::new(move |line: &[u8]| {
            sink.lock()
                .unwrap()
                .push(String::from_utf8_lossy(line).trim_end().to_owned());
        });
        let console = Arc::new(Mutex::new(Console::new(Some(listener), sink).unwrap()));
        let handle = console.lock().unwrap().handle();
        let driver = Driver::start(Arc::clone(&console) as _);
        Self {
            driver,
            console,
            handle,
            seen,
            dir,
        }
    }

    fn client(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("agent")).unwrap()
    }
}

fn say(driver: &mut Driver, text: &str) {
    driver.put(BUFFERS, text.as_bytes());
    driver.describe(TRANSMIT, 0, &[desc(BUFFERS, text.len() as u32, 0, 0)]);
    driver.complete(TRANSMIT, 0);
}

#[test]
fn lines_reach_the_client_and_the_vmm_and_answers_the_guest() {
    let mut bench = Bench::new();
    let mut client = BufReader::new(bench.client());
    say(&mut bench.driver, "{\"event\":");
    say(&mut bench.driver, "\"ready\"}\n");
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    assert_eq!(line, "{\"event\":\"ready\"}\n");
    assert_eq!(*bench.seen.lock().unwrap(), ["{\"event\":\"ready\"}"]);

    bench
        .driver
        .describe(RECEIVE, 2, &[desc(BUFFERS + 4096, 64, WRITE, 0)]);
    bench.driver.offer(RECEIVE, 2);
    bench.driver.kick(RECEIVE);
    client.get_mut().write_all(b"{\"do\":\"poweroff\"}\n").unwrap();
    bench
        .driver
        .wait_for("the command", |d| d.used(RECEIVE) == [(2, 18)]);
    assert_eq!(bench.driver.get(BUFFERS + 4096, 18), b"{\"do\":\"poweroff\"}\n");
}

#[test]
fn the_vmm_itself_can_talk_to_the_guest() {
    let mut bench = Bench::new();
    assert!(bench.handle.send(b"stop\n"));
    bench.driver.describe(RECEIVE, 0, &[desc(BUFFERS, 64, WRITE, 0)]);
    assert_eq!(bench.driver.complete(RECEIVE, 0), 5);
    let flood = vec![b'x'; 65 << 10];
    assert!(!bench.handle.send(&flood), "a flood is refused, not queued");
}

#[test]
fn no_reader_and_a_stuck_reader_never_hold_the_guest() {
    let mut bench = Bench::new();
    let stuck = bench.client();
    let line = format!("{}\n", "y".repeat(1000));
    for _ in 0..1000 {
        say(&mut bench.driver, &line);
    }
    drop(stuck);
    let mut client = BufReader::new(bench.client());
    say(&mut bench.driver, "last\n");
    let mut lines = Vec::new();
    while lines.last().map(String::as_str) != Some("last") {
        let mut text = String::new();
        client.read_line(&mut text).unwrap();
        lines.push(text.trim_end().to_owned());
    }
    assert!(bench.handle.stats().dropped_lines > 0);
    assert!(
        lines.iter().all(|l| l == "last" || l.len() == 1000),
        "only whole lines arrive"
    );
}

#[test]
fn hostile_rings_stop_the_console_until_its_reset_and_nothing_else() {
    let mut bench = Bench::new();
    survive_hostile_rings(&mut bench.driver, TRANSMIT, |driver| say(driver, "hello\n"));
    assert_eq!(bench.seen.lock().unwrap().last().unwrap(), "hello");
}

#[test]
fn hostile_receive_rings_do_the_same() {
    let mut bench = Bench::new();
    let console = bench.handle.clone();
    // The receive queue is only looked at when there is something for the guest.
    let offer = move |driver: &mut Driver| {
        console.send(b"x");
        driver.describe(RECEIVE, 0, &[desc(BUFFERS, 64, WRITE, 0)]);
        assert!(driver.complete(RECEIVE, 0) > 0);
    };
    let driver = &mut bench.driver;
    offer(driver);
    for (times, (name, attack)) in (1..).zip(crate::virtio::testing::HOSTILE) {
        driver.bring_up();
        bench.handle.send(b"x");
        attack(driver, RECEIVE);
        driver.wait_for(name, Driver::needs_reset);
        driver.expect_needs_reset(times);
        driver.bring_up();
        offer(driver);
    }
}

#[test]
fn what_no_line_can_be_long_enough_for_is_not_read() {
    let mut bench = Bench::new();
    let driver = &mut bench.driver;
    driver.put(BUFFERS, &[b'x'; 4096]);
    let chain = |next: u16| desc(BUFFERS, 3 << 20, if next < 8 { NEXT } else { 0 }, next % 8);
    driver.describe(TRANSMIT, 0, &(1..=8).map(chain).collect::<Vec<_>>());
    driver.complete(TRANSMIT, 0);
    let taken = bench.handle.stats().from_guest;
    assert!((1..=256 << 10).contains(&taken), "{taken} bytes of 24 MiB");
    // The line that is cut there is none.
    say(driver, "its end\nnext\n");
    assert_eq!(*bench.seen.lock().unwrap(), ["next"]);
    assert_eq!(bench.handle.stats().dropped_lines, 1);
}

#[test]
fn a_guest_that_keeps_the_console_at_work_holds_none_who_asks_or_sends() {
    let mut bench = Bench::new();
    let held = bench.console.lock().unwrap();
    assert_eq!(bench.handle.stats(), ConsoleStats::default());
    assert!(bench.handle.send(b"stop\n"));
    drop(held);
    bench.driver.describe(RECEIVE, 0, &[desc(BUFFERS, 64, WRITE, 0)]);
    assert_eq!(bench.driver.complete(RECEIVE, 0), 5);
}
