//! Guests' processes that ask at the API, as they would once their guest has taken them over.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use levy_launcher::api_client::{Client, ClientError};
use levy_member::{ConnectError, Introduction};
use levy_protocol::mark;
use levy_protocol::run_dir::api_socket;

use crate::harness::{Managed, hello, until};

/// Tells a child of the test process who it is, and where its manager is.
const ORDER: &str = "LEVY_INTRUDER_TEST";

/// Not a test of its own: what children do. Without an order it has nothing to do.
#[test]
fn in_a_child() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let (who, dir) = order.split_once(' ').unwrap();
    let dir = Path::new(dir);
    let _kept = (who == "admitted").then(|| Introduction::make(dir, hello("evil", 16)).unwrap());
    if who == "marked" || who == "greedy" {
        mark::put_on_this_process().unwrap();
    }
    if who == "greedy" {
        // Requests that never end, on more connections than are served, until the test has seen enough.
        let open = |_| {
            let mut asks = UnixStream::connect(api_socket(dir)).unwrap();
            let _ = asks.write_all(b"GET /host HT");
            asks
        };
        let open: Vec<_> = (0..900).map(open).collect();
        println!("open");
        let _ = std::io::stdin().read(&mut [0]);
        drop(open);
        return;
    }
    if who == "gone" {
        // It asks, and does not wait for the answer.
        let mut asks = UnixStream::connect(api_socket(dir)).unwrap();
        asks.write_all(b"GET /host HTTP/1.1\r\nHost: levy\r\n\r\n")
            .unwrap();
        return;
    }
    let client = Client::at(dir);
    let answers = [client.host().err(), client.direct("g", "stop").err()];
    for answer in answers {
        let answer = answer.map_or("done".to_owned(), |error| error.to_string());
        println!("answer: {answer}");
    }
}

/// A child that does what `who` does with the manager whose run directory is `dir`.
fn child(who: &str, dir: &Path) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "intruders::in_a_child", "--nocapture"])
        .env(ORDER, format!("{who} {}", dir.display()));
    child
}

/// What the process `who` hears from the manager whose run directory is `dir`.
pub(crate) fn answers(who: &str, dir: &Path) -> Vec<String> {
    let child = child(who, dir).output().unwrap();
    assert!(child.status.success(), "{child:?}");
    let text = String::from_utf8(child.stdout).unwrap();
    let answers = text.lines().filter_map(|line| line.split_once("answer: "));
    answers.map(|(_, answer)| answer.to_owned()).collect()
}

#[test]
fn guests_processes_ask_nothing_at_the_api() {
    let managed = Managed::new(256);
    let _kept = managed.admit("g", 16);
    let phase = || managed.client().guest("g").unwrap().phase;
    // One that this manager admitted; and one of another manager, or none.
    for who in ["admitted", "marked"] {
        let answers = answers(who, managed.dir.path());
        assert_eq!(answers.len(), 2, "{answers:?}");
        for answer in answers {
            assert!(
                answer.contains("a guest's process asks nothing"),
                "{who}: {answer}"
            );
        }
        assert_eq!(phase(), levy_protocol::api::Phase::Running);
    }
    assert_eq!(managed.client().host().unwrap().doors.intruders, 4);
    // What a process was that has ended before its question is looked at is not known: it is not called an intruder.
    (0..20).for_each(|_| assert!(answers("gone", managed.dir.path()).is_empty()));
    assert_eq!(managed.client().host().unwrap().doors.intruders, 4);
    assert_eq!(answers("tool", managed.dir.path()), ["done", "done"]);
    assert_eq!(phase(), levy_protocol::api::Phase::Stopping);
}

#[test]
fn connections_of_one_process_keep_no_other_from_the_api() {
    let managed = Managed::new(256);
    let mut greedy = child("greedy", managed.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(greedy.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("open")));
    // Served in turn, 900 that are given 5 s each, 64 at a time, would take longer than this client's patience of 20 s.
    for _ in 0..3 {
        managed.client().host().unwrap();
    }
    // It runs a guest, and what it does is said.
    until("it is counted", || {
        managed.client().host().unwrap().doors.intruders > 0
    });
    drop(greedy.stdin.take());
    assert!(greedy.wait().unwrap().success());
}

#[test]
fn a_place_that_may_be_another_users_is_told_nothing() {
    let managed = Managed::new(256);
    let dir = managed.dir.path();
    let open_to =
        |mode| std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    open_to(0o777);
    let asked = managed.client().host().unwrap_err();
    assert!(matches!(asked, ClientError::Untrusted { .. }), "{asked}");
    let joined = Introduction::make(dir, hello("g", 16)).map(drop).unwrap_err();
    assert!(matches!(joined, ConnectError::Untrusted { .. }), "{joined}");
    let stats = managed.levy(&["stats"]);
    let said = String::from_utf8_lossy(&stats.stderr);
    assert!(
        stats.status.code() == Some(1) && said.contains("not to be trusted"),
        "{said}"
    );
    open_to(0o700);
    assert_eq!(managed.client().host().unwrap().guests, 0);
}
