//! Recorded lines of the protocol's versions, read and written by what is here now.
//!
//! The files hold what a released program said, version 3 taken down from its sockets. They are kept by hand and never
//! made from the structs here: that a struct agrees with itself shows nothing.

use std::collections::VecDeque;
use std::io::{self, Read};

use serde_json::Value;

use super::{
    FromManager, FromVmm, Hello, Line, LineError, Lines, Message, NAME_LIMIT, OLDEST, Report, SwapRoom,
    VERSION, Welcome, is_name,
};

const GUEST_3: &str = include_str!("transcripts/version-3-guest.jsonl");
const MANAGER_3: &str = include_str!("transcripts/version-3-manager.jsonl");
const GUEST_4: &str = include_str!("transcripts/version-4-guest.jsonl");
const GUEST_6: &str = include_str!("transcripts/version-6-guest.jsonl");

/// Hands out one line with each read.
struct Transcript(VecDeque<String>);

impl Read for Transcript {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let line = self.0.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        into[..line.len()].copy_from_slice(line.as_bytes());
        Ok(line.len())
    }
}

/// All of `text` as one connection brings it.
fn read<T: Message>(text: &str) -> Vec<Result<Line<T>, LineError>> {
    let mut stream = Transcript(text.lines().map(|line| format!("{line}\n")).collect());
    let mut lines = Lines::default();
    text.lines().map(|_| lines.next(&mut stream)).collect()
}

fn messages<T: Message>(text: &str) -> Vec<T> {
    let message = |line| match line {
        Ok(Line::Message(message)) => message,
        _ => panic!("no message"),
    };
    read(text).into_iter().map(message).collect()
}

/// `message` as it would be sent.
fn written(message: &impl Message) -> Value {
    serde_json::from_slice(&Lines::encode(message).unwrap()).unwrap()
}

#[test]
fn a_guest_of_version_3_is_understood() {
    let said = messages::<FromVmm>(GUEST_3);
    let FromVmm::Hello(hello) = &said[0] else { panic!() };
    assert_eq!((hello.version, hello.oldest, hello.size), (3, None, 48 << 20));
    assert_eq!(hello.range().common(), Ok(3));
    let FromVmm::Hello(hello) = &said[1] else { panic!() };
    assert_eq!(hello.group.as_ref().and_then(|group| group.max), Some(1 << 30));
    let FromVmm::Report(report) = &said[3] else {
        panic!()
    };
    assert_eq!((report.old_pools[0].id, report.paused), (77, true));
    let FromVmm::LimitStatus(status) = &said[5] else {
        panic!()
    };
    assert_eq!((status.limit_bytes, status.waiting), (None, 2));
}

#[test]
fn a_guest_of_version_3_hears_what_it_knows_and_nothing_else() {
    let known: Vec<Value> = MANAGER_3
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let said = messages::<FromManager>(MANAGER_3);
    let again: Vec<Value> = said.iter().map(written).collect();
    assert_eq!(
        again, known,
        "fields that version 3 has not would end its guests' connections"
    );
    let welcome = FromManager::Welcome(Welcome {
        version: 3,
        newest: 3,
        rebalance_seconds: 15,
    });
    assert_eq!(written(&welcome), known[0]);
}

#[test]
fn a_hello_in_version_3_has_no_field_that_a_manager_of_version_3_refuses() {
    let known: Value = serde_json::from_str(GUEST_3.lines().nth(1).unwrap()).unwrap();
    let FromVmm::Hello(hello) = messages::<FromVmm>(GUEST_3).remove(1) else {
        panic!()
    };
    let now = Hello {
        version: VERSION,
        oldest: Some(OLDEST),
        pages: None,
        swap: Some(SwapRoom {
            device: 7,
            free_bytes: 1 << 20,
            spare_bytes: 0,
        }),
        ..hello
    };
    assert_ne!(written(&FromVmm::Hello(now.clone())), known);
    assert_eq!(written(&FromVmm::Hello(now.in_version(3))), known);
}

#[test]
fn a_guest_of_version_4_says_nothing_of_its_swap_and_a_manager_of_version_4_hears_nothing_of_it() {
    let said = messages::<FromVmm>(GUEST_4);
    let (FromVmm::Hello(hello), FromVmm::Report(report)) = (&said[0], &said[1]) else {
        panic!("{said:?}")
    };
    assert_eq!(hello.range().common(), Ok(4));
    assert_eq!((hello.swap, report.swap), (None, None));
    let swap = SwapRoom {
        device: 7,
        free_bytes: 1 << 20,
        spare_bytes: 0,
    };
    let now = Report {
        swap: Some(swap),
        ..report.clone()
    };
    let known: Value = serde_json::from_str(GUEST_4.lines().nth(1).unwrap()).unwrap();
    assert_eq!(written(&FromVmm::Report(now.clone().in_version(4))), known);
    assert_eq!(now.clone().in_version(VERSION), now);
    assert_eq!(written(&FromVmm::Report(now))["swap"]["free_bytes"], 1 << 20);
}

#[test]
fn what_only_a_newer_guest_says_is_skipped() {
    let said = read::<FromVmm>(GUEST_6);
    assert!(
        matches!(&said[0], Ok(Line::Message(FromVmm::Hello(hello))) if hello.range().common() == Ok(VERSION))
    );
    assert!(matches!(&said[1], Ok(Line::Message(FromVmm::Report(report))) if report.pages.private == 12288));
    assert!(matches!(&said[2], Ok(Line::Unknown)), "{:?}", said[2]);
    assert!(matches!(&said[3], Ok(Line::Message(FromVmm::LimitStatus(_)))));
}

#[test]
fn the_same_words_from_a_guest_of_this_version_or_an_older_one_are_errors() {
    for version in [OLDEST, VERSION] {
        let hello = format!(
            "{{\"type\":\"hello\",\"version\":{version},\"name\":\"g\",\"size\":1,\"min\":0,\"shares\":1,\"sharing\":\"off\"}}"
        );
        for line in GUEST_6.lines().skip(1) {
            let said = read::<FromVmm>(&format!("{hello}\n{line}"));
            assert!(matches!(&said[0], Ok(Line::Message(_))));
            let Err(LineError::Message(error)) = &said[1] else {
                panic!("{line}: {:?}", said[1]);
            };
            assert!(
                ["\"pages.huge\"", "\"weather\"", "\"since\""]
                    .iter()
                    .any(|word| error.contains(word)),
                "the error names what is wrong: {error}"
            );
        }
    }
}

#[test]
fn a_field_of_a_newer_version_than_is_spoken_is_an_error_that_names_both() {
    let mut hello: Value = serde_json::from_str(GUEST_4.lines().next().unwrap()).unwrap();
    let mut report: Value = serde_json::from_str(GUEST_4.lines().nth(1).unwrap()).unwrap();
    let swap = serde_json::json!({"device": 7, "free_bytes": 1, "spare_bytes": 0});
    report["swap"] = swap.clone();
    let refused = |text: String, said: usize, words: [&str; 3]| {
        let heard = read::<FromVmm>(&text);
        let Err(LineError::Message(error)) = &heard[said] else {
            panic!("{text}: {heard:?}");
        };
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(
        format!("{hello}\n{report}"),
        1,
        ["\"report\"", "\"swap\" from version 5", "version 4 is spoken"],
    );
    hello["swap"] = swap;
    refused(
        hello.to_string(),
        0,
        ["\"hello\"", "\"swap\" from version 5", "version 4 is spoken"],
    );
    // Which is no offence where the peer speaks that version, or a newer one.
    for version in [VERSION, VERSION + 1] {
        hello["version"] = version.into();
        let heard = read::<FromVmm>(&format!("{hello}\n{report}"));
        assert!(
            heard.iter().all(|line| matches!(line, Ok(Line::Message(_)))),
            "{heard:?}"
        );
    }
    hello["version"] = OLDEST.into();
    hello["oldest"].take();
    refused(
        hello.to_string(),
        0,
        ["\"hello\"", "from version 4", "version 3 is spoken"],
    );
    let stop = |newest: u32| {
        format!(
            "{{\"type\":\"welcome\",\"version\":{newest},\"newest\":{newest},\"rebalance_seconds\":15}}\n\
             {{\"type\":\"stop\",\"grace_ms\":1}}"
        )
    };
    assert!(read::<FromManager>(&stop(VERSION))[1].is_ok());
    let heard = &read::<FromManager>(&stop(4))[1];
    assert!(
        matches!(heard, Err(LineError::Message(error)) if error.contains("\"grace_ms\" from version 5")),
        "{heard:?}"
    );
}

#[test]
fn a_version_that_is_not_spoken_is_named_before_anything_else_is_looked_at() {
    let said = read::<FromVmm>("{\"type\":\"hello\",\"version\":9,\"oldest\":7,\"nothing\":\"else\"}");
    assert!(matches!(&said[0], Err(LineError::Version(error)) if error.to_string().contains("7 to 9")));
}

#[test]
fn what_only_a_newer_manager_says_is_skipped() {
    let newer = "{\"type\":\"welcome\",\"version\":4,\"newest\":7,\"rebalance_seconds\":15,\"mood\":1}\n{\"type\":\"sing\"}\n{\"type\":\"stop\",\"softly\":true}";
    let said = read::<FromManager>(newer);
    assert!(matches!(&said[0], Ok(Line::Message(FromManager::Welcome(welcome))) if welcome.version == 4));
    assert!(matches!(&said[1], Ok(Line::Unknown)));
    assert!(matches!(
        &said[2],
        Ok(Line::Message(FromManager::Stop { grace_ms: None }))
    ));
    let same = newer.replace("\"newest\":7", "\"newest\":4");
    assert!(read::<FromManager>(&same)[0].is_err());
}

#[test]
fn a_name_is_no_folder_and_no_option() {
    for name in ["a", "web-1", "1.2_3", "_a", &"a".repeat(NAME_LIMIT)] {
        assert!(is_name(name), "{name}");
    }
    for name in [
        "",
        "-",
        "..",
        "--all",
        "-a",
        "a b",
        "a/b",
        &"a".repeat(NAME_LIMIT + 1),
    ] {
        assert!(!is_name(name), "{name}");
    }
}
