//! Managers and guests' processes that are killed, replaced and upgraded while all memory is written to and checked.

use std::path::Path;

use simulated::{Guest, GuestOptions, Manager, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_simulated");

fn guests(manager: &Manager, count: usize, options: impl Fn(&str) -> GuestOptions) -> Vec<Guest> {
    (1..=count)
        .map(|number| options(&format!("g{number}")))
        .map(|options| Guest::start(Path::new(PROGRAM), manager.dir(), options))
        .collect()
}

#[test]
fn guests_outlive_their_manager_and_share_on_with_the_next() {
    let mut manager = Manager::start(Path::new(PROGRAM), 512);
    let mut guests = guests(&manager, 3, GuestOptions::new);
    // It lets go of an old pool only after four passes, which at 50,000 pages a second last longer than the second
    // between two reports: the manager hears of it for certain.
    let reader = GuestOptions::new("reader").mib(64).rate(0);
    let mut reader = Guest::start(Path::new(PROGRAM), manager.dir(), reader);
    for guest in &guests {
        guest.until("sharing", |status| status.shared > 500 && status.writes > 1000);
    }
    reader.until("sharing", |status| status.shared > 2000);
    // Many pages may be few copies, and then the pool is too small to be seen below.
    until("a pool of more than a MiB", || {
        manager.view().domains["simulated"].pool_pages > 400
    });
    manager.kill();
    for guest in &guests {
        let before = guest.status();
        guest.until("work without a manager", |now| now.writes > before.writes + 5000);
        assert!(guest.status().shared > 0, "common copies stay");
    }
    guests.iter_mut().for_each(Guest::assert_right);

    manager.start_again();
    // It is there from the first guest's return until all have let go of it, which may be before the last one's return.
    until("the old pool in the new budget", || {
        manager.view().spent.old_pools_bytes > 1 << 20
    });
    until("all guests' return", || manager.connected() == 4);
    let names: Vec<_> = manager
        .client()
        .guests()
        .unwrap()
        .into_iter()
        .map(|guest| guest.name)
        .collect();
    assert!(
        ["g1", "g2", "g3"]
            .iter()
            .all(|name| names.iter().any(|known| known == name)),
        "{names:?}"
    );
    until("sharing with the new manager", || {
        manager
            .view()
            .domains
            .get("simulated")
            .is_some_and(|domain| domain.pool_pages > 500)
    });
    for guest in guests.iter().chain([&reader]) {
        guest.until("the end of the old pool", |status| status.old_pools == 0);
    }
    until("a budget without it", || {
        manager.view().spent.old_pools_bytes == 0
    });
    guests.iter_mut().for_each(Guest::assert_right);
    reader.assert_right();
}

#[test]
fn a_manager_is_replaced_under_load_again_and_again() {
    let mut manager = Manager::start(Path::new(PROGRAM), 512);
    let mut guests = guests(&manager, 3, |name| GuestOptions::new(name).rate(5000));
    for round in 0..4 {
        // Sometimes in the middle of the first merges, sometimes by Ctrl-C.
        guests[round % 3].until("merging", |status| status.merged > 200 * round as u64);
        match round % 2 {
            0 => manager.kill(),
            _ => manager.interrupt(),
        }
        manager.start_again();
        until("all guests' return", || manager.connected() == 3);
    }
    let merged = guests[0].status().merged;
    guests[0].until("merging with the last manager", |status| status.merged > merged);
    guests.iter_mut().for_each(Guest::assert_right);
}

#[test]
fn a_guest_that_dies_while_it_merges_takes_its_references_and_nothing_else() {
    let manager = Manager::start(Path::new(PROGRAM), 512);
    let domain = || manager.view().domains["simulated"];
    let mut pair = guests(&manager, 2, |name| GuestOptions::new(name).mib(32));
    let mut rest = [
        Guest::start(Path::new(PROGRAM), manager.dir(), GuestOptions::new("a").seed(2)),
        Guest::start(Path::new(PROGRAM), manager.dir(), GuestOptions::new("b").seed(2)),
    ];
    pair[0].until("the first merges", |status| status.merged > 100);
    pair[0].kill();
    until("one guest less", || manager.view().guests == 3);
    pair[1].assert_right();
    rest.iter_mut().for_each(Guest::assert_right);

    pair[1].until("more merges", |status| status.shared > 500);
    pair[1].kill();
    until("two guests less", || manager.view().guests == 2);
    until("punched pages", || domain().punched > 0);
    rest[0].until("sharing", |status| status.shared > 500);
    rest.iter_mut().for_each(|guest| guest.still(true));
    // What is left are the pages of the two that live, and no other guest's references.
    until("references of the living", || {
        let shared: u64 = rest.iter().map(|guest| guest.status().shared).sum();
        let references = domain().references;
        references >= shared && references <= shared + shared / 10
    });
    assert_eq!(domain().guests, 2);
    rest.iter_mut().for_each(Guest::assert_right);
}

#[test]
fn a_guest_that_comes_back_at_once_takes_its_old_place() {
    let manager = Manager::start(Path::new(PROGRAM), 128);
    for _ in 0..5 {
        let mut guest = Guest::start(Path::new(PROGRAM), manager.dir(), GuestOptions::new("same"));
        let seen = manager.client().guest("same").unwrap();
        assert_eq!((seen.pid, manager.view().guests), (guest.pid(), 1));
        guest.kill();
    }
}
