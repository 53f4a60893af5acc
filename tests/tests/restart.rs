//! Guests that restart under a launcher: another process, the same name, the same disk.

use std::path::Path;

use levy_launcher::LaunchEvent;
use levy_protocol::outcome::Ending;
use levy_tests::{Lab, Launch};

#[test]
fn a_guest_that_restarts_is_another_process_under_the_same_name() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut launch = Launch::start(&lab, &["--no-disk", "--name", "again"]);
    launch.ready();
    let before = launch.guest();
    launch.restart(&before);
    let restart = launch.until("a restart", |event| match event {
        LaunchEvent::Restart { guest, restarts } => Some((guest, restarts)),
        _ => None,
    });
    assert_eq!(restart, ("again".to_owned(), 1));
    launch.ready();
    let after = launch.guest();
    assert_eq!((before.name.as_str(), after.name.as_str()), ("again", "again"));
    assert_ne!(before.pid, after.pid);
    assert!(
        !Path::new(&format!("/proc/{}", before.pid)).exists(),
        "the old process is gone"
    );
    // Nothing that the old process had is left: neither in a balloon, nor compressed, nor in a swap file.
    let memory = after.memory;
    assert_eq!(
        (
            memory.ballooned_bytes,
            memory.compressed_bytes,
            memory.swapped_bytes
        ),
        (0, 0, 0)
    );
}

#[test]
fn a_restart_can_be_an_end() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut launch = Launch::start(&lab, &["--no-disk", "--on-reboot", "exit"]);
    launch.ready();
    let guest = launch.guest();
    launch.restart(&guest);
    let summary = launch.summary();
    assert_eq!(summary.guests[0].outcome, Some(Ending::Rebooted), "{summary:?}");
    assert_eq!(launch.wait(), Some(3));
}
