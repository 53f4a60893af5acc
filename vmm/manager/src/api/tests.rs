//! What is asked at the socket, and what is answered.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use allocator::{Pages, State};
use serde::de::DeserializeOwned;

use super::types::{GroupView, GuestView, HostView, Phase};
use super::{BODY_LIMIT, serve, view};
use crate::host::{Host, Sockets};
use crate::policy::{Round, Settings};
use levy_protocol::link::{BalloonReport, FromManager, FromVmm, GroupLimits, Hello, Line, Lines, Report};
use levy_protocol::run_dir::api_socket;

const PATIENCE: Duration = Duration::from_secs(60);

fn host(dir: &Path) -> Host {
    let settings = Settings::new(Pages::from_mib(256));
    Host::open(Sockets::in_dir(dir), settings, Pages::from_mib(4096)).unwrap()
}

/// The status and the body of the answer to one request.
fn ask(dir: &Path, request: &str, body: &str) -> (u16, Vec<u8>) {
    let mut stream = UnixStream::connect(api_socket(dir)).unwrap();
    let length = body.len();
    let head = format!("{request} HTTP/1.1\r\nhost: levy\r\ncontent-length: {length}\r\n");
    write!(stream, "{head}content-type: application/json\r\n\r\n{body}").unwrap();
    let mut answer = Vec::new();
    // A body that is refused is not read, which the kernel may say at the end.
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.as_bytes().to_vec())
}

fn answer<T: DeserializeOwned>(dir: &Path, request: &str) -> T {
    serde_json::from_slice(&ask(dir, request, "").1).unwrap()
}

/// A guest that was welcomed, and what its process hears.
fn guest(dir: &Path, hello: Hello) -> (UnixStream, Lines) {
    let (stream, mut lines) = (
        UnixStream::connect(Sockets::in_dir(dir).guests).unwrap(),
        Lines::default(),
    );
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Lines::send(&mut &stream, &FromVmm::Hello(hello)).unwrap();
    let heard = lines.next::<FromManager>(&mut &stream);
    assert!(matches!(heard, Ok(Line::Message(FromManager::Welcome(_)))));
    (stream, lines)
}

fn hello() -> Hello {
    Hello::new("g", 64 << 20).with_min(16 << 20)
}

#[test]
fn a_guest_that_is_told_something_is_shown_so_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let _api = serve(host.clone(), dir.path()).unwrap();
    let (stream, mut lines) = guest(dir.path(), hello());
    for (word, phase) in [
        ("pause", Phase::Paused),
        ("resume", Phase::Running),
        ("stop", Phase::Stopping),
    ] {
        let (status, body) = ask(dir.path(), &format!("POST /guests/g/{word}"), "");
        let shown: GuestView = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, shown.phase), (202, phase));
        let shown: GuestView = answer(dir.path(), "GET /guests/g");
        assert_eq!(shown.phase, phase);
        let heard = lines.next::<FromManager>(&mut &stream);
        assert!(matches!(
            (word, heard),
            ("pause", Ok(Line::Message(FromManager::Pause)))
                | ("resume", Ok(Line::Message(FromManager::Resume)))
                | ("stop", Ok(Line::Message(FromManager::Stop { grace_ms: None })))
        ));
    }
    host.close();
}

#[test]
fn a_body_may_have_as_many_bytes_as_is_said_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let _api = serve(host.clone(), dir.path()).unwrap();
    let change = |bytes: usize| format!("{:bytes$}", r#"{"tax_percent": 50}"#);
    let (status, body) = ask(dir.path(), "PUT /host", &change(BODY_LIMIT));
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    assert_eq!(ask(dir.path(), "PUT /host", &change(BODY_LIMIT + 1)).0, 413);
    host.close();
}

#[test]
fn pages_are_shown_in_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let _api = serve(host.clone(), dir.path()).unwrap();
    let (stream, _lines) = guest(dir.path(), hello());
    let report = Report {
        written_per_second: 5,
        balloon: Some(BalloonReport {
            target_pages: 30,
            actual_pages: 20,
            unresponsive: false,
            statistics: Default::default(),
            statistics_age_seconds: None,
        }),
        ..Report::default()
    };
    Lines::send(&mut &stream, &FromVmm::Report(report)).unwrap();
    let began = Instant::now();
    while host.counters().reports == 0 {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(5));
    }
    let shown: GuestView = answer(dir.path(), "GET /guests/g");
    let balloon = shown.balloon.unwrap();
    assert_eq!(
        (balloon.target_bytes, balloon.actual_bytes),
        (30 * 4096, 20 * 4096)
    );
    assert_eq!(shown.activity.written_bytes_per_second, 5 * 4096);
    let shown: HostView = answer(dir.path(), "GET /host");
    assert_eq!(shown.free_bytes, None, "there was no round");
    let mut picture = host.picture();
    picture.round = Some(Round {
        state: State::Soft,
        free: -3,
        reserve: Pages::new(7),
        orders: Default::default(),
        pools: Default::default(),
        next: PATIENCE,
    });
    let shown = view::host(&host, &picture);
    assert_eq!(
        (shown.free_bytes, shown.reserve_bytes),
        (Some(-3 * 4096), 7 * 4096)
    );
    host.close();
}

#[test]
fn a_group_without_a_maximum_is_shown_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let _api = serve(host.clone(), dir.path()).unwrap();
    let group = GroupLimits {
        name: "web".into(),
        shares: 1000,
        min: 0,
        max: None,
    };
    let _guest = guest(
        dir.path(),
        Hello {
            group: Some(group),
            ..hello()
        },
    );
    let shown: GroupView = answer(dir.path(), "GET /groups/web");
    assert_eq!((shown.max_bytes, shown.guests.len()), (None, 1));
    let (status, _) = ask(dir.path(), "PATCH /groups/web", r#"{"max_bytes": 134217728}"#);
    let shown: GroupView = answer(dir.path(), "GET /groups/web");
    assert_eq!((status, shown.max_bytes), (200, Some(128 << 20)));
    host.close();
}
