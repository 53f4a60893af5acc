//! Sharing between real guests: what an oracle finds is shared, and what is shared keeps its bytes.

use std::process::Command;
use std::time::Duration;

use levy::control::{Client, Request};
use levy_tests::{Guest, Lab};
use serde_json::Value;

/// The least part of what could be saved that has to be.
const OF_ORACLE: f64 = 0.9;

/// Pages of the pattern that both guests hold: 24 MiB.
const EQUAL: u64 = 24 * 256;

#[test]
fn two_guests_share_what_an_oracle_finds_and_keep_their_bytes() {
    let Some(lab) = Lab::or_skip() else { return };
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("sharing.json");
    // The same pattern in both, held and then checked byte by byte; beside it, each rewrites pages of its own.
    let status = Command::new(lab.levy())
        .args([
            "bench",
            "sharing",
            "--counts",
            "2",
            "--quiet",
            "15s",
            "--scan-cpu",
            "0.8",
        ])
        .args(["--no-disk", "--memory", "size=128M"])
        .args(["--work", "fill mib=24 seed=1 seconds=3600 &"])
        .args(["--work", "churn mib=8 seconds=3 seed={n}"])
        .arg("--kernel")
        .arg(lab.boot().kernel())
        .arg("--initrd")
        .arg(lab.boot().initramfs())
        .arg("--json")
        .arg(&json)
        .status()
        .unwrap();
    assert!(
        status.success(),
        "{status}: a guest ended, or its bytes were wrong"
    );
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let row = &report["results"]["by_guests"][0];
    println!("{row:#}");
    assert_eq!(row["guests"], 2);
    let number = |value: &Value| value.as_u64().unwrap();
    assert!(row["of_oracle"].as_f64().unwrap() >= OF_ORACLE);
    assert!(number(&row["shared_pages"]) >= 2 * EQUAL);
    // The kernel's own account does not know of the engine's.
    let (claimed, counted) = (
        number(&row["reclaimed_pages"]),
        number(&row["kernel_reclaimed_pages"]),
    );
    assert!(
        claimed * 9 <= counted * 10,
        "{claimed} claimed, {counted} by the kernel's account"
    );
}

#[test]
fn pages_of_a_guest_that_runs_are_told_to_nobody() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut guest = lab.guest("inventory").start();
    guest.ready();
    let key = "5".repeat(64);
    assert!(refusal(&guest, &key).contains("pause it first"));
    guest.vmm(&Request::Pause);
    assert!(refusal(&guest, "5").contains("64 hexadecimal digits"));
    // This guest has no manager, so that nobody keeps account of its pages.
    assert!(refusal(&guest, &key).contains("--manager"));
    guest.vmm(&Request::Resume);
    assert_eq!(guest.power_off().status, 0);
}

/// What the VMM says to a request for the inventory that it does not answer.
fn refusal(guest: &Guest, key: &str) -> String {
    let request = Request::Inventory {
        key: key.to_owned(),
        first: 0,
        pages: 1,
    };
    let mut client = Client::connect(&guest.path("control"), Duration::from_secs(60)).unwrap();
    client.ask(&request).unwrap_err().to_string()
}
