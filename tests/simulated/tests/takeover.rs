//! What the next manager of a run directory takes over: guests, whatever they hold by now, and what was set.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use levy_protocol::api::{GroupChange, GuestChange, HostChange};
use levy_protocol::link::{GroupLimits, Hello};
use simulated::{Guest, GuestOptions, Manager, SmallDisk, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_simulated");

const MIB: u64 = 1 << 20;

fn start(manager: &Manager, options: GuestOptions) -> Guest {
    Guest::start(Path::new(PROGRAM), manager.dir(), options)
}

fn kept(manager: &Manager) -> PathBuf {
    manager.dir().join("kept.json")
}

/// Bytes that the guests' processes hold, as the budget counts them.
fn held(guests: &[Guest]) -> u64 {
    guests.iter().map(Guest::held).sum()
}

#[test]
fn guests_that_have_swapped_come_back_although_their_disk_is_fuller_and_the_budget_smaller() {
    // Three times 46 MiB may be swapped here. What is swapped already is not to be found free once more.
    let Some(disk) = SmallDisk::or_skip(160) else {
        return;
    };
    let swap = disk.path().to_owned();
    let folder = swap.to_str().unwrap();
    let mut manager = Manager::start_with(Path::new(PROGRAM), 256, &["--swap", folder]);
    let options = |seed: u64| GuestOptions::new(&format!("g{seed}")).mib(48).seed(seed);
    let mut guests: Vec<_> = (1..=3)
        .map(|seed| start(&manager, options(seed).all_different().rate(100).swap(&swap)))
        .collect();
    let smaller = HostChange {
        budget_bytes: Some(90 * MIB),
        ..HostChange::default()
    };
    manager.client().change_host(&smaller).unwrap();
    until("much in the swap files", || {
        guests.iter().map(|guest| guest.status().swapped).sum::<u64>() > 4000
    });
    // No budget is named: the one that was set holds.
    manager.start_again_as(&["--swap", folder]);
    assert_eq!(manager.view().settings.budget_bytes, 90 * MIB);
    assert_eq!(
        manager.view().guests,
        3,
        "they are known before any has said a word"
    );
    until("all guests' return", || manager.connected() == 3);
    until("a budget that holds", || held(&guests) <= 92 * MIB);
    assert_eq!(manager.view().doors.refused, 0);
    // What they brought counts as room that they have: there is some left for one more.
    let small = GuestOptions::new("small").mib(8).swap(&swap);
    until("room for one more, once all have reported", || {
        let seen = manager.client().guests().unwrap();
        seen.iter().all(|guest| guest.memory.swapped_bytes > 0)
    });
    let mut small = start(&manager, small);
    small.assert_right();
    guests.iter_mut().for_each(Guest::assert_right);
}

#[test]
fn the_budget_holds_while_pages_of_the_pool_before_move_to_the_next_managers() {
    const BUDGET: u64 = 60;
    let mut manager = Manager::start(Path::new(PROGRAM), BUDGET);
    // The same contents in all of them, more than fits even when shared, and writers who part them again.
    let options = |number: u64| GuestOptions::new(&format!("g{number}")).mib(36).rate(300);
    let mut guests: Vec<_> = (1..=3)
        .map(|number| start(&manager, options(number).all_different().late_fill()))
        .collect();
    until("a pool of many pages under a full budget", || {
        let spent = manager.view().spent;
        spent.pools_bytes > 8 * MIB
    });
    for _ in 0..2 {
        let pool = manager.view().spent.pools_bytes;
        manager.kill();
        manager.start_again();
        until("all guests' return", || manager.connected() == 3);
        // The old pool is in no figure of the manager's before the first guest has reported it.
        let (mut most, mut known) = (0, false);
        for _ in 0..60 {
            let spent = manager.view().spent;
            known |= spent.old_pools_bytes > 0;
            let pools = if known { spent.pools_bytes } else { pool };
            most = most.max(held(&guests) + pools);
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("at most {} MiB of {BUDGET}", most / MIB);
        assert!(
            most <= (BUDGET + BUDGET / 8) * MIB,
            "{} of {BUDGET} MiB",
            most / MIB
        );
        until("a pool again", || manager.view().spent.pools_bytes > 8 * MIB);
    }
    guests.iter_mut().for_each(Guest::assert_right);
}

#[test]
fn what_was_set_holds_under_the_next_manager_and_its_command_line_comes_first() {
    let mut manager = Manager::start_as(Path::new(PROGRAM), &["--budget", "256M"]);
    let mut guests = [
        start(&manager, GuestOptions::new("g1")),
        start(&manager, GuestOptions::new("g2")),
    ];
    let host = HostChange {
        budget_bytes: Some(200 * MIB),
        tax_percent: Some(40.0),
        rebalance_seconds: Some(3.5),
    };
    let guest = GuestChange {
        shares: Some(1700),
        min_bytes: Some(4 * MIB),
    };
    manager.client().change_host(&host).unwrap();
    manager.client().change_guest("g2", &guest).unwrap();
    // At once: a guest may not even have read of it.
    manager.start_again_as(&[]);
    let settings = manager.view().settings;
    assert_eq!((settings.budget_bytes, settings.tax_percent), (200 * MIB, 40.0));
    assert!((settings.rebalance_seconds - 3.5).abs() < 1e-9);
    let limits = |manager: &Manager| {
        let limits = manager.client().guest("g2").unwrap().limits;
        (limits.shares, limits.min_bytes)
    };
    assert_eq!(limits(&manager), (1700, 4 * MIB));
    until("both guests' return", || manager.connected() == 2);
    assert_eq!(limits(&manager), (1700, 4 * MIB));

    // What is named on the command line comes before what was set, also for those that come after.
    manager.start_again_as(&["--tax", "10"]);
    let settings = manager.view().settings;
    assert_eq!((settings.budget_bytes, settings.tax_percent), (200 * MIB, 10.0));
    manager.start_again_as(&[]);
    let settings = manager.view().settings;
    assert_eq!((settings.budget_bytes, settings.tax_percent), (200 * MIB, 75.0));
    until("both guests' return", || manager.connected() == 2);
    guests.iter_mut().for_each(Guest::assert_right);
}

#[test]
fn a_budget_below_what_was_promised_takes_guests_back_and_squeezes_them() {
    let mut manager = Manager::start(Path::new(PROGRAM), 256);
    let options = |seed: u64| {
        GuestOptions::new(&format!("g{seed}"))
            .mib(48)
            .min_mib(24)
            .seed(seed)
    };
    let mut guests: Vec<_> = (1..=3)
        .map(|seed| start(&manager, options(seed).all_different().rate(200)))
        .collect();
    // Less than the minimums alone.
    manager.start_again_as(&["--budget", "70M"]);
    until("all guests' return", || manager.connected() == 3);
    assert_eq!(manager.view().doors.refused, 0);
    // Their minimums and processes are more than the budget: they are squeezed towards those.
    until("squeezed guests", || {
        let seen = manager.client().guests().unwrap();
        seen.iter().all(|guest| guest.memory.private_bytes <= 34 * MIB)
    });
    // What makes it better is taken, although it is not yet good.
    let budget = |mib: u64| HostChange {
        budget_bytes: Some(mib * MIB),
        ..HostChange::default()
    };
    manager.client().change_host(&budget(75)).unwrap();
    manager.client().change_host(&budget(72)).unwrap_err();
    manager.client().change_host(&budget(512)).unwrap();
    until("guests that grow again", || {
        let seen = manager.client().guests().unwrap();
        seen.iter().any(|guest| guest.memory.private_bytes > 38 * MIB)
    });
    guests.iter_mut().for_each(Guest::assert_right);
}

#[test]
fn a_file_that_is_of_no_use_is_set_aside_and_guests_introduce_themselves_anew() {
    let mut manager = Manager::start(Path::new(PROGRAM), 256);
    let mut guests = [
        start(&manager, GuestOptions::new("g1")),
        start(&manager, GuestOptions::new("g2")),
    ];
    let path = kept(&manager);
    let whole = fs::read_to_string(&path).unwrap();
    assert!(whole.contains("\"g1\"") && whole.contains("\"g2\""), "{whole}");
    let useless = [
        whole[..whole.len() / 2].to_owned(),
        String::new(),
        "\0\0\0\0".to_owned(),
        whole.replace("\"format\":1", "\"format\":9"),
        whole.replace("\"guests\":", "\"gusts\":"),
    ];
    for text in useless {
        manager.kill();
        fs::write(&path, &text).unwrap();
        manager.start_again();
        until("both guests' return", || manager.connected() == 2);
        let aside = manager.dir().join("kept.json.set-aside");
        assert_eq!(fs::read_to_string(&aside).unwrap(), text);
        fs::remove_file(aside).unwrap();
        let again = fs::read_to_string(&path).unwrap();
        assert!(again.contains("\"g1\"") && again.contains("\"g2\""), "{again}");
    }
    guests.iter_mut().for_each(Guest::assert_right);
}

#[test]
fn only_the_very_process_is_taken_back() {
    let mut manager = Manager::start(Path::new(PROGRAM), 256);
    let mut guests = [
        start(&manager, GuestOptions::new("g1")),
        start(&manager, GuestOptions::new("g2")),
    ];
    manager.kill();
    guests[0].kill();
    // Another process with the number of the one that is gone: this one.
    let path = kept(&manager);
    let text = fs::read_to_string(&path).unwrap();
    let (gone, other) = (
        format!("\"pid\":{},", guests[0].pid()),
        format!("\"pid\":{},", std::process::id()),
    );
    assert!(text.contains(&gone), "{text}");
    fs::write(&path, text.replace(&gone, &other)).unwrap();
    manager.start_again();
    assert_eq!(manager.view().guests, 1);
    until("the other guest's return", || manager.connected() == 1);
    // Its name is free.
    let mut again = start(&manager, GuestOptions::new("g1"));
    assert_eq!(manager.client().guest("g1").unwrap().pid, again.pid());
    again.assert_right();
    guests[1].assert_right();
}

#[test]
fn groups_come_back_with_their_guests() {
    let mut manager = Manager::start(Path::new(PROGRAM), 256).asked_by_another();
    let hello = Hello {
        group: Some(GroupLimits {
            name: "web".into(),
            shares: 1000,
            min: 4 * MIB,
            max: None,
        }),
        fleet: Some("/somewhere/fleet.toml".into()),
        ..Hello::new("member", 16 * MIB).with_min(2 * MIB)
    };
    let guest = levy_member::Introduction::make(manager.dir(), hello).unwrap();
    let change = GroupChange {
        shares: Some(300),
        max_bytes: Some(64 * MIB),
        ..GroupChange::default()
    };
    manager.client().change_group("web", &change).unwrap();
    manager.start_again();
    // It has not come back; but its process, which is this one, lives.
    let host = manager.view();
    let group = &host.groups["web"];
    assert_eq!(
        (group.shares, group.min_bytes, group.max_bytes),
        (300, 4 * MIB, Some(64 * MIB))
    );
    assert_eq!(group.guests, ["member"]);
    let seen = manager.client().guest("member").unwrap();
    assert!(!seen.connected && seen.held_bytes > 0, "{seen:?}");
    assert_eq!(seen.fleet.as_deref(), Some("/somewhere/fleet.toml"));
    drop(guest);
}

#[test]
fn a_manager_that_stood_still_hangs_up_on_no_guest_and_takes_no_page_away() {
    let manager = Manager::start(Path::new(PROGRAM), 512);
    let mut guests: Vec<_> = (1..=3)
        .map(|number| start(&manager, GuestOptions::new(&format!("g{number}")).rate(200)))
        .collect();
    for guest in &guests {
        guest.until("sharing", |status| status.shared > 500);
    }
    // Longer than a guest may be silent; then for a moment at work, and away again.
    for (away, back) in [(36_000, 500), (9000, 0)] {
        manager.still(true);
        std::thread::sleep(Duration::from_millis(away));
        manager.still(false);
        std::thread::sleep(Duration::from_millis(back));
    }
    until("all guests connected", || manager.connected() == 3);
    let view = manager.view();
    assert_eq!((view.guests, view.doors.cut_offs), (3, 0), "{view:?}");
    let merged = guests[0].status().merged;
    guests[0].until("merging on", |status| status.merged > merged);
    guests.iter_mut().for_each(Guest::assert_right);
}
