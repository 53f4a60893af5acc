//! Guests that want far more memory than there is: the budget holds, all data is right, no process is killed.

use std::process::{Command, Stdio};

use levy_tests::Lab;
use serde_json::Value;

/// `levy bench overcommit --quick`: three guests of 192 MiB in 288 MiB, one without a balloon.
#[test]
#[ignore = "minutes on an emulated host"]
fn overcommitted_guests_keep_their_data_and_the_host_its_budget() {
    let Some(lab) = Lab::with_disk_or_skip() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (json, plot) = (folder.path().join("report.json"), folder.path().join("plot.svg"));
    let output = Command::new(lab.levy())
        .args(["bench", "overcommit", "--quick", "--kernel"])
        .arg(lab.boot().kernel())
        .arg("--initrd")
        .arg(lab.boot().initramfs())
        .arg("--disk")
        .arg(format!("path={},overlay=on", lab.disk().display()))
        .arg("--cmdline=root=/dev/vda")
        .arg("--json")
        .arg(&json)
        .arg("--plot")
        .arg(&plot)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{told}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let results = &report["results"];
    assert_eq!(results["guests_ok"], 3, "{:#}\n{told}", results["fates"]);
    assert_eq!(results["budget_exceeded_samples"], 0, "{:#}", results["ledger"]);
    assert_eq!(
        results["ledger"]["below_minimum_samples"], 0,
        "{:#}",
        results["ledger"]
    );
    // Memory was really short, and all three ways of taking it were used.
    let most = |what: &str| {
        let guests = results["samples"].as_array().unwrap().iter();
        let all = guests.flat_map(|sample| sample["guests"].as_array().unwrap());
        all.filter_map(|guest| guest[what].as_u64()).max().unwrap_or(0) >> 20
    };
    assert!(most("ballooned_bytes") > 0, "nothing was ballooned");
    let silent = &results["silent_balloon"];
    let (compressed, swapped) = (&silent["most_compressed_mib"], &silent["most_swapped_mib"]);
    assert!(compressed.as_u64() > Some(0), "{silent}");
    println!("without a balloon: {compressed} MiB compressed, {swapped} MiB swapped");
    assert!(std::fs::read_to_string(&plot).unwrap().contains("<svg"));
}
