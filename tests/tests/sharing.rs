//! Sharing between real guests: what an oracle finds is shared, and what is shared keeps its bytes.

use std::process::Command;

use levy_protocol::control::Request;
use levy_tests::{Guest, Lab};
use serde_json::Value;

/// The least part of what could be saved that has to be.
const OF_ORACLE: f64 = 0.9;

/// Pages of the pattern that both guests hold: 24 MiB.
const EQUAL: u64 = 24 * 256;

/// `levy bench sharing` with two guests: the row of its report about them. The same pattern is in both, held and then
/// checked byte by byte; meanwhile each rewrites pages of its own. It is measured once the engines find nothing more,
/// however long that takes on emulated and busy hosts.
fn shared(lab: &Lab) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("sharing.json");
    let status = Command::new(lab.levy())
        .args(["bench", "sharing", "--counts", "2", "--scan-cpu", "0.8"])
        .args(["--quiet", "15s", "--deadline", "10m"])
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
    let row = report["results"]["by_guests"][0].clone();
    println!("{row:#}");
    row
}

#[test]
fn two_guests_share_what_an_oracle_finds_and_keep_their_bytes() {
    let Some(lab) = Lab::or_skip() else { return };
    let row = shared(&lab);
    assert_eq!(row["guests"], 2);
    assert_eq!(row["settled"], true);
    assert!(
        row["of_oracle"].as_f64() >= Some(OF_ORACLE),
        "too little of what could be shared is"
    );
    let number = |value: &Value| value.as_u64().unwrap();
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
    // This guest has no manager, so that no region keeps account of its pages.
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
    guest.try_vmm(&request).unwrap_err().to_string()
}
