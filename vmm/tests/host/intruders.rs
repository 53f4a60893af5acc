//! Guests' processes that ask at the API, as they would once their guest has taken them over.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use levy_launcher::api_client::Client;
use levy_member::Introduction;
use levy_protocol::mark;
use levy_protocol::run_dir::api_socket;

use crate::harness::{Managed, hello};

/// Tells a child of the test process who it is, and where its manager is.
const ORDER: &str = "LEVY_INTRUDER_TEST";

/// Not a test of its own: what children do. Without an order it has nothing to do.
#[test]
fn in_a_child() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let (who, dir) = order.split_once(' ').unwrap();
    let dir = Path::new(dir);
    let _kept = (who == "admitted").then(|| Introduction::make(dir, hello("evil", 16)).unwrap());
    if who == "marked" {
        mark::put_on_this_process().unwrap();
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

/// What the process `who` hears from the manager whose run directory is `dir`.
pub(crate) fn answers(who: &str, dir: &Path) -> Vec<String> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "intruders::in_a_child", "--nocapture"])
        .env(ORDER, format!("{who} {}", dir.display()))
        .output()
        .unwrap();
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
