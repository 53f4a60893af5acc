//! Guests that swap to folders of their own: what fits there decides who is admitted, and is said of a guest that stands
//! above its limit.

use std::path::Path;

use levy_launcher::api_client::ClientError;
use levy_protocol::api::{GuestChange, HostChange};
use simulated::{Guest, GuestOptions, Manager, SmallDisk, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_simulated");

const MIB: u64 = 1 << 20;

fn start(manager: &Manager, options: GuestOptions) -> Guest {
    Guest::start(Path::new(PROGRAM), manager.dir(), options)
}

/// What a guest says that does not start.
fn refusal(manager: &Manager, options: GuestOptions) -> String {
    let ended = std::process::Command::new(PROGRAM)
        .args(options.under(manager.dir()).to_args())
        .output()
        .unwrap();
    assert!(!ended.status.success());
    String::from_utf8(ended.stdout).unwrap()
}

/// A guest of which 32 MiB may have to be swapped to `disk`.
fn options(name: &str, disk: &SmallDisk) -> GuestOptions {
    GuestOptions::new(name)
        .mib(36)
        .min_mib(4)
        .rate(0)
        .swap(disk.path())
}

#[test]
fn a_guest_is_admitted_where_its_own_swap_has_room_and_guests_on_one_file_system_share_what_is_free() {
    let (Some(small), Some(large)) = (SmallDisk::or_skip(4), SmallDisk::or_skip(60)) else {
        return;
    };
    let manager = Manager::start(Path::new(PROGRAM), 256);
    let said = refusal(&manager, options("g1", &small));
    // 4 MiB, of which 28 more are needed.
    for words in ["g1", "4194304 bytes free", "29360128 bytes are missing", "--swap"] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    let mut first = start(&manager, options("g1", &large));
    let said = refusal(&manager, options("g2", &large));
    assert!(
        said.contains("g2") && said.contains("4194304 bytes are missing"),
        "{said}"
    );
    // With more of it in memory it fits, and so does one that swaps elsewhere.
    let mut second = start(&manager, options("g2", &large).min_mib(8));
    let mut third = start(&manager, options("g3", &small).swap("/var/tmp"));
    for guest in [&mut first, &mut second, &mut third] {
        guest.assert_right();
    }
}

#[test]
fn a_guest_of_an_older_program_which_does_not_say_what_it_can_swap_is_admitted_as_ever() {
    let Some(disk) = SmallDisk::or_skip(4) else { return };
    let manager = Manager::start(Path::new(PROGRAM), 256);
    let mut guest = start(&manager, options("old", &disk).of_version(4));
    assert_eq!(manager.client().guest("old").unwrap().protocol, 4);
    let reports = manager.view().doors.reports;
    until("reports that are understood", || {
        manager.view().doors.reports >= reports + 2
    });
    assert_eq!(manager.view().doors.cut_offs, 0);
    guest.assert_right();
}

#[test]
fn where_a_guests_swap_has_filled_up_no_promise_is_made_that_needs_it_and_its_limit_says_why() {
    let Some(disk) = SmallDisk::or_skip(80) else {
        return;
    };
    let mut manager = Manager::start(Path::new(PROGRAM), 256);
    let options = options("full", &disk).mib(64).min_mib(8).all_different();
    let mut guest = start(&manager, options);
    until("all memory in use", || guest.held() > 64 * MIB);
    let ballast = disk.path().join("ballast");
    std::fs::write(&ballast, vec![1; 81 << 20]).unwrap_err();
    let reports = manager.view().doors.reports;
    until("word of it", || manager.view().doors.reports >= reports + 2);
    let smaller = HostChange {
        budget_bytes: Some(40 * MIB),
        ..HostChange::default()
    };
    let lower = GuestChange {
        min_bytes: Some(4 * MIB),
        ..GuestChange::default()
    };
    let refused = [
        manager.client().change_host(&smaller).map(drop),
        manager.client().change_guest("full", &lower).map(drop),
    ];
    for refused in refused {
        match refused {
            Err(ClientError::Refused { status: 409, error }) => {
                assert!(
                    error.contains("\"full\"") && error.contains("bytes free"),
                    "{error}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(manager.view().above_limits, []);
    // No budget of the next manager keeps it out.
    manager.start_again_as(&["--budget", "40M"]);
    until("the reason why it stands above its limit", || {
        let above = manager.view().above_limits;
        above.iter().any(|above| {
            let is_above = above.held_bytes > above.limit_bytes;
            is_above && (above.guest.as_str(), above.reason.as_str()) == ("full", "swap full")
        })
    });
    std::fs::remove_file(&ballast).unwrap();
    until("its way down", || manager.view().above_limits.is_empty());
    manager.start_again_as(&["--budget", "256M"]);
    guest.assert_right();
}
