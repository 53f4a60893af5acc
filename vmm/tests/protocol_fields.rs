//! Whether docs/host-protocol.md has every field of every message, and no other.

use std::collections::BTreeSet;

use levy_protocol::link::{
    Activity, BalloonReport, FromManager, FromVmm, GroupLimits, Hello, LimitStatus, Limits, NEWER_FIELDS,
    Orders, PageCounts, PoolSize, Report, Sharing, SwapRoom, VERSION, Welcome,
};
use serde_json::Value;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/host-protocol.md");

/// A message, and a field of it; of a message without fields, an empty one.
type Field = (String, String);

fn group() -> Option<GroupLimits> {
    Some(GroupLimits {
        name: "web".into(),
        shares: 1,
        min: 1,
        max: Some(1),
    })
}

/// Every message with everything in it. No field is left to a default: a new one does not compile before it is here.
fn from_vmm() -> [FromVmm; 3] {
    let pages = PageCounts::default();
    let swap = SwapRoom {
        device: 1,
        free_bytes: 1,
        spare_bytes: 1,
    };
    let hello = FromVmm::Hello(Hello {
        version: VERSION,
        oldest: Some(VERSION),
        name: "g".into(),
        size: 1,
        min: 1,
        shares: 1,
        sharing: Sharing::Off,
        group: group(),
        fleet: None,
        control: None,
        pages: Some(pages),
        swap: Some(swap),
    });
    let report = FromVmm::Report(Report {
        pages,
        activity: Activity {
            periods: 1,
            last: (1, 1),
            running: (1, 1),
        },
        balloon: Some(BalloonReport {
            target_pages: 1,
            actual_pages: 1,
            unresponsive: false,
            statistics: [].into(),
            statistics_age_seconds: None,
        }),
        cow_breaks: 1,
        written_per_second: 1,
        pages_in: 1,
        store_bytes: 1,
        engine_cpu_us: 1,
        paused: false,
        old_pools: vec![PoolSize { id: 1, bytes: 1 }],
        sent_us: 1,
        swap: Some(swap),
    });
    let standing = FromVmm::LimitStatus(LimitStatus {
        limit_bytes: None,
        gated: false,
        waiting: 0,
    });
    [hello, report, standing]
}

/// The same of what the manager says.
fn from_manager() -> [FromManager; 7] {
    let welcome = FromManager::Welcome(Welcome {
        version: VERSION,
        newest: VERSION,
        rebalance_seconds: 1,
    });
    let orders = FromManager::Orders(Orders {
        balloon_pages: 1,
        compress_pages: 1,
        swap_pages: 1,
        split_blocks: 1,
        scan_cpu: 0.5,
        scan_pages_per_second: 1,
        sample_pages: 1,
        sample_seconds: 1,
        limit_bytes: None,
        owed_bytes: 1,
    });
    let limits = FromManager::Limits(Limits {
        min: 1,
        shares: 1,
        group: group(),
    });
    let refused = FromManager::Refused {
        reason: "full".into(),
    };
    let stop = FromManager::Stop { grace_ms: Some(1) };
    let (pause, resume) = (FromManager::Pause, FromManager::Resume);
    [welcome, refused, orders, limits, stop, pause, resume]
}

/// Adds `path` and all that lies below it.
fn add(fields: &mut BTreeSet<Field>, message: &str, path: &str, value: &Value) {
    fields.insert((message.to_owned(), path.to_owned()));
    match value {
        Value::Object(below) => {
            for (name, value) in below.iter().filter(|(name, _)| *name != "type") {
                let path = format!("{path}.{name}");
                add(fields, message, path.trim_start_matches('.'), value);
            }
        }
        Value::Array(items) => {
            let objects = items.iter().filter_map(Value::as_object);
            for (name, value) in objects.flatten() {
                add(fields, message, &format!("{path}[].{name}"), value);
            }
        }
        _ => {}
    }
}

/// What stands between backquotes in `text`.
fn quoted(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

#[test]
fn the_page_has_every_field_of_every_message_and_no_other() {
    let mut real = BTreeSet::new();
    let from_vmm = from_vmm().map(|message| serde_json::to_value(message).unwrap());
    let from_manager = from_manager().map(|message| serde_json::to_value(message).unwrap());
    for message in from_vmm.iter().chain(&from_manager) {
        add(&mut real, message["type"].as_str().unwrap(), "", message);
    }
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (_, tables) = page.split_once("\n## The messages' fields\n").unwrap();
    let (tables, _) = tables.split_once("\n## ").unwrap();
    let (mut written, mut newer, mut message) = (BTreeSet::new(), BTreeSet::new(), String::new());
    for line in tables.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            for name in quoted(heading) {
                written.insert((name.clone(), String::new()));
                message = name;
            }
        } else if line.starts_with("| `") {
            let column = line.split('|').nth(1).unwrap();
            if let Some((_, since)) = line.split_once("from version ") {
                let since = since.split(' ').next().unwrap().parse::<u32>().unwrap();
                newer.extend(quoted(column).map(|field| (message.clone(), field, since)));
            }
            written.extend(quoted(column).map(|field| (message.clone(), field)));
        }
    }
    assert_eq!(
        written.symmetric_difference(&real).collect::<Vec<_>>(),
        Vec::<&Field>::new(),
        "in one of both only"
    );
    let table = NEWER_FIELDS.map(|(message, field, since)| (message.to_owned(), field.to_owned(), since));
    assert_eq!(newer, table.into(), "the version that a field came with");
}
