//! What two threads do at once.

use std::time::Duration;

use super::*;
use crate::cgroup::Choice;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_guest_that_is_admitted_while_the_control_group_is_taken_into_use_enters_it() {
    let [dir, parent] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    std::fs::write(parent.path().join("cgroup.controllers"), "memory").unwrap();
    let group = MemoryHigh::find(&Choice::Below(parent.path().into())).unwrap();
    let settings = Settings::new(Pages::from_mib(256));
    let host = Host::open(Sockets::in_dir(dir.path()), settings, Pages::from_mib(4096)).unwrap();
    // It is admitted under this lock, and enters the group that is in use after that.
    let admitting = host.state();
    std::thread::scope(|scope| {
        scope.spawn(|| host.use_cgroup(group));
        let began = Instant::now();
        while host.0.memory_high.lock().is_none() && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        let is_in_use = host.0.memory_high.lock().is_some();
        drop(admitting);
        assert!(is_in_use, "the guests that are there are asked for after that");
    });
    host.use_cgroup(None);
    host.close();
}

#[test]
fn the_sockets_are_gone_when_the_rounds_have_ended() {
    let dir = tempfile::tempdir().unwrap();
    let sockets = Sockets::in_dir(dir.path());
    let settings = Settings::new(Pages::from_mib(256));
    let host = Host::open(sockets.clone(), settings, Pages::from_mib(4096)).unwrap();
    // The thread that closes comes no further than here for a while.
    let open = host.open_sockets();
    std::thread::scope(|scope| {
        scope.spawn(|| host.close());
        let began = Instant::now();
        while !host.is_closing() && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        let rounds = scope.spawn(|| {
            host.run();
            sockets.guests.exists() || sockets.pages.exists()
        });
        std::thread::sleep(Duration::from_millis(100));
        drop(open);
        assert!(
            !rounds.join().unwrap(),
            "a process that ends then leaves its sockets"
        );
    });
}
