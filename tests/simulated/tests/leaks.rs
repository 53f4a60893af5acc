//! Guests that come and go leave nothing in the manager.

use std::path::Path;

use simulated::{Guest, GuestOptions, Manager, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_simulated");

/// Memory that a manager may have more after fifty guests more, KiB: allocators keep some, and a guest that left
/// something behind would leave at least its page connection's buffer of half a MiB.
const SLACK_KIB: u64 = 6 * 1024;

#[test]
fn fifty_guests_in_a_row_leave_nothing() {
    let manager = Manager::start(Path::new(PROGRAM), 256);
    let five = |round: u32| {
        let guests: Vec<_> = (0..5)
            .map(|number| GuestOptions::new(&format!("g{round}-{number}")).mib(8))
            .map(|options| Guest::start(Path::new(PROGRAM), manager.dir(), options))
            .collect();
        let mut gone = Vec::new();
        for (number, mut guest) in guests.into_iter().enumerate() {
            guest.until("merging", |status| status.merged > 50);
            // One in two is told to go, the others are killed.
            match number % 2 {
                0 => drop(manager.client().direct(guest.name(), "stop").unwrap()),
                _ => guest.kill(),
            }
            assert_eq!(guest.status().wrong, 0);
            gone.push(guest);
        }
        until("an empty house", || manager.view().guests == 0);
    };
    let settled = || {
        // Threads of the last connections end a moment after their guests.
        until("few threads", || manager.footprint().threads <= 10);
        manager.footprint()
    };
    (0..4).for_each(five);
    let before = settled();
    (4..14).for_each(five);
    // A connection to the API that just ended is open for a moment, and so is a file that is about to replace another.
    until("as few descriptors and files as before", || {
        let now = settled();
        now.fds <= before.fds && now.files <= before.files
    });
    let after = settled();
    println!("{before:?}\n{after:?}");
    assert!(after.threads <= before.threads + 1, "{before:?} {after:?}");
    assert!(
        after.anonymous_kib <= before.anonymous_kib + SLACK_KIB,
        "{before:?} {after:?}"
    );
    let view = manager.view();
    assert!(view.domains.is_empty() && view.spent.pools_bytes == 0, "{view:?}");
}
