//! Guests' processes of other versions of the protocol than the manager's.
//!
//! The lines of version 3 are as its programs sent them, not made from today's structs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use levy_protocol::run_dir::Sockets;
use serde_json::{Value, json};
use simulated::{Manager, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_simulated");

const HELLO_3: &str = r#"{"type":"hello","version":3,"name":"old","size":50331648,"min":4194304,"shares":1000,"sharing":"off","group":null,"fleet":null,"control":null}"#;
const REPORT_3: &str = r#"{"type":"report","pages":{"private":12000,"shared":0,"zero":0,"compressed":0,"swapped":0,"ballooned":0,"empty":288},"activity":{"periods":0,"last":[0,0],"running":[91,100]},"balloon":null,"cow_breaks":0,"written_per_second":1171,"pages_in":0,"store_bytes":0,"engine_cpu_us":180461,"paused":false,"old_pools":[],"sent_us":628048149}"#;
const STANDING_3: &str = r#"{"type":"standing","limit_bytes":66867200,"gated":false,"waiting":0}"#;

/// What a guest of version 3 takes in an order, and nothing else.
const ORDERS_3: [&str; 11] = [
    "type",
    "balloon_pages",
    "compress_pages",
    "swap_pages",
    "split_blocks",
    "scan_cpu",
    "scan_pages_per_second",
    "sample_pages",
    "sample_seconds",
    "limit_bytes",
    "owed_bytes",
];

/// A process that speaks for itself.
struct Voice(BufReader<UnixStream>);

impl Voice {
    fn new(manager: &Manager) -> Self {
        let stream = UnixStream::connect(Sockets::in_dir(manager.dir()).guests).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self(BufReader::new(stream))
    }

    fn say(&mut self, line: &str) {
        writeln!(self.0.get_mut(), "{line}").unwrap();
    }

    /// The next line; nothing when the manager has hung up.
    fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        let length = self.0.read_line(&mut line).unwrap_or(0);
        (length > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    fn is_cut_off(&mut self) -> bool {
        // Orders may be on their way.
        while self.hear().is_some() {}
        true
    }
}

#[test]
fn a_guest_of_version_3_is_managed_in_version_3() {
    let manager = Manager::start(Path::new(PROGRAM), 256).asked_by_another();
    let mut voice = Voice::new(&manager);
    voice.say(HELLO_3);
    assert_eq!(
        voice.hear(),
        Some(json!({"type": "welcome", "rebalance_seconds": 15}))
    );
    voice.say(REPORT_3);
    voice.say(STANDING_3);
    let seen = || manager.client().guest("old").unwrap();
    until("its report", || {
        seen().activity.written_bytes_per_second == 1171 * 4096
    });
    assert_eq!(seen().protocol, 3);
    for _ in 0..3 {
        let orders = voice.hear().expect("it is managed");
        let fields: Vec<_> = orders.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(orders["type"], "orders");
        assert!(fields.iter().all(|field| ORDERS_3.contains(field)), "{fields:?}");
    }
    // What version 3 has not is an offence in it.
    voice.say(&STANDING_3.replace('}', ",\"since\":1}"));
    assert!(voice.is_cut_off());
    until("the cut", || seen().counters.cut_offs == 1);
}

#[test]
fn a_guest_of_a_newer_version_is_managed_in_ours_and_may_say_what_we_do_not_know() {
    let manager = Manager::start(Path::new(PROGRAM), 256).asked_by_another();
    let mut voice = Voice::new(&manager);
    let newer = HELLO_3
        .replace("\"version\":3", "\"version\":6,\"oldest\":3,\"numa\":[1]")
        .replace("old\"", "new\"");
    voice.say(&newer);
    let welcome = voice.hear().unwrap();
    assert_eq!((&welcome["version"], &welcome["newest"]), (&json!(5), &json!(5)));
    voice.say(&REPORT_3.replace("\"empty\":288", "\"empty\":288,\"huge\":7"));
    voice.say("{\"type\":\"weather\",\"degrees\":21}");
    voice.say(&STANDING_3.replace('}', ",\"since\":1}"));
    voice.say(&REPORT_3.replace("1171", "999"));
    let seen = || manager.client().guest("new").unwrap();
    until("its last report", || {
        seen().activity.written_bytes_per_second == 999 * 4096
    });
    assert!(
        seen().connected && seen().protocol == 5 && seen().counters.cut_offs == 0,
        "{:?}",
        seen()
    );
}

#[test]
fn a_guest_without_a_version_in_common_hears_which_there_are() {
    let manager = Manager::start(Path::new(PROGRAM), 256).asked_by_another();
    for (versions, theirs) in [("9,\"oldest\":7", "versions 7 to 9"), ("2", "version 2")] {
        let mut voice = Voice::new(&manager);
        voice.say(&HELLO_3.replace("\"version\":3", &format!("\"version\":{versions}")));
        let refused = voice.hear().unwrap();
        let reason = refused["reason"].as_str().unwrap();
        assert!(
            reason.contains(theirs) && reason.contains("versions 3 to 5"),
            "{reason}"
        );
        assert!(voice.is_cut_off());
    }
    assert_eq!(manager.view().guests, 0);
}
