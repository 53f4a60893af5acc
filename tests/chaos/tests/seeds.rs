//! Fixed seeds, a minute each: nothing of what must not be was, and the harness did something.

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// One after the other: each run has a load of its own.
static TURN: Mutex<()> = Mutex::new(());

/// Counters that an idle harness would leave at zero.
const DONE: [&str; 16] = [
    "/kills",
    "/stalls",
    "/long_stalls",
    "/checks",
    "/statuses",
    "/starts",
    "/fleets_at_rest",
    "/fleets_looked_over",
    "/reference_samples",
    "/budget/samples_without_a_reason",
    "/back/times",
    "/actions/kill_manager",
    "/actions/kill_guest",
    "/actions/change_budget",
    "/actions/change_shares",
    "/settings_compared",
];

fn run(seed: u64) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (json, failures) = (
        dir.join(format!("chaos-{seed}.json")),
        dir.join(format!("chaos-{seed}.txt")),
    );
    let _ = std::fs::remove_file(&failures);
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["--quick", "--seed", &seed.to_string(), "--json"])
        .arg(&json)
        .arg("--failures")
        .arg(&failures)
        .output()
        .unwrap();
    let told = std::fs::read_to_string(&failures).unwrap_or_default();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{errors}\n{told}", output.status);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let results = &report["results"];
    println!("{results:#}");
    for done in DONE {
        let count = results.pointer(done).and_then(serde_json::Value::as_u64);
        assert!(count.unwrap_or(0) > 0, "{done} of an idle harness: {results:#}");
    }
    assert_eq!(results["wrong_bytes"], 0, "{results:#}");
    assert_eq!(results["quota_left"], serde_json::Value::Null, "{results:#}");
}

#[test]
fn the_first_seed() {
    run(11);
}

#[test]
fn the_second_seed() {
    run(12);
}

#[test]
fn the_third_seed() {
    run(13);
}
