//! A guest with a network card on a tap, in a network namespace of the test's own.

use std::process::Command;

use levy_tests::Lab;

#[test]
fn a_guest_and_its_host_reach_each_other_over_a_tap() {
    let Some(lab) = Lab::or_skip() else { return };
    if !rustix::process::geteuid().is_root() {
        println!("skipped: making a network namespace needs root");
        return;
    }
    // The namespace ends with its last process, so nothing can be left behind.
    let net = "tap=levytest0,create=on,host=10.99.0.1/24,guest=10.99.0.2/24";
    let plan = lab
        .guest("net")
        .args(["--net", net])
        .under(&["unshare", "--net", "--"]);
    let mut guest = plan.start();
    guest.ready();
    // 3 pings of 20,000 bytes are 42 frames each way, so that rings wrap their chains.
    guest.exec(&["busybox", "ping", "-c", "3", "-s", "20000", "10.99.0.1"]);
    let namespace = guest.pid().to_string();
    let output = Command::new("nsenter")
        .args([
            "--target",
            &namespace,
            "--net",
            "ip",
            "-s",
            "link",
            "show",
            "dev",
            "levytest0",
        ])
        .output()
        .unwrap();
    let tap = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && tap.contains("LOWER_UP"), "{tap}");
    assert_eq!(guest.power_off().status, 0);
}
