//! Who is let in and taken back.

mod swapping;

use std::io;

use super::*;
use crate::kept::{Kept, KeptGuest, KeptSettings};
use levy_protocol::link::{GroupLimits, Hello, VERSION};
use levy_protocol::process_memory::{Counted, Held};

const MIB: u64 = 1 << 20;

/// A process.
fn process(pid: u32) -> ProcessId {
    let started = u64::from(pid) * 7;
    ProcessId { pid, started }
}

/// The process with this number, which introduces itself so.
fn applicant(hello: Hello, pid: u32) -> Applicant {
    Applicant {
        hello,
        process: process(pid),
        domain: Ok(()),
        swap_device: None,
    }
}

fn admit(registry: &mut Registry, name: &str, pid: u32) -> Result<GuestId, AdmitError> {
    registry.admit(Instant::now(), applicant(hello(name), pid))
}

/// The same is known of all processes of guests of the manager before.
fn fates(registry: &Registry, fate: impl Fn() -> Fate) -> BTreeMap<ProcessId, Fate> {
    let unwatched = registry.unwatched().into_iter();
    unwatched.map(|process| (process, fate())).collect()
}

/// Guests of the manager before that could not be looked at.
fn unknown(error: i32) -> Fate {
    Fate::Unknown(io::Error::from_raw_os_error(error))
}

/// What the kernel counts of a process that holds so much.
fn holds(mib: u64) -> Counted {
    let held = Held {
        anonymous: mib * MIB,
        page_tables: 0,
    };
    Counted {
        held,
        mappings: Some(0),
    }
}

fn registry() -> Registry {
    Registry::new(Settings::new(Pages::from_mib(1024)), Pages::from_mib(4096))
}

fn hello(name: &str) -> Hello {
    Hello::new(name, 128 * MIB).with_min(16 * MIB)
}

/// What a manager before kept of the guest `name`, which process `pid` runs.
fn kept(name: &str, pid: u32) -> Kept {
    let guest = KeptGuest {
        name: name.to_owned(),
        pid,
        started: process(pid).started,
        size: 128 * MIB,
        min: 32 * MIB,
        shares: 1500,
        group: Some("web".into()),
        domain: None,
        fleet: None,
        control: None,
        protocol: VERSION,
    };
    let group = GroupLimits {
        name: "web".into(),
        shares: 700,
        min: 0,
        max: Some(512 * MIB),
    };
    Kept::new(KeptSettings::default(), vec![group], vec![guest])
}

#[test]
fn one_process_is_one_guest() {
    let mut registry = registry();
    admit(&mut registry, "a", 1).unwrap();
    let refused = admit(&mut registry, "b", 1).unwrap_err();
    assert!(
        refused.to_string().contains("runs the guest \"a\" already"),
        "{refused}"
    );
    admit(&mut registry, "b", 2).unwrap();
    assert_eq!(registry.guests().count(), 2);
    registry.allow_several_in_one_process();
    admit(&mut registry, "c", 1).unwrap();
}

#[test]
fn a_process_with_the_number_of_a_guest_that_started_at_another_time_is_not_that_guest() {
    let mut registry = registry();
    let id = admit(&mut registry, "a", 1).unwrap();
    let mut stranger = applicant(hello("a"), 1);
    stranger.process.started += 1;
    let refused = registry.admit(Instant::now(), stranger).unwrap_err();
    assert!(matches!(refused, AdmitError::Taken(_)), "{refused}");
    assert_eq!(admit(&mut registry, "a", 1).unwrap(), id);
}

#[test]
fn a_domain_that_cannot_be_made_keeps_its_guest_out_and_its_group_away() {
    let mut registry = registry();
    let group = kept("a", 1).groups.remove(0);
    let hello = Hello {
        group: Some(group),
        ..hello("a").in_domain("pool")
    };
    let mut applicant = applicant(hello, 1);
    applicant.domain = Err(io::Error::other("no pool"));
    let refused = registry.admit(Instant::now(), applicant).unwrap_err();
    assert!(matches!(refused, AdmitError::Domain { .. }), "{refused}");
    assert_eq!(
        (registry.guests().count(), registry.groups().list().len()),
        (0, 0)
    );
}

#[test]
fn no_guest_names_a_path_that_is_longer_than_any() {
    let mut registry = registry();
    let long = || Some("x".repeat(admitting::LONGEST_PATH + 1));
    for hello in [
        Hello {
            control: long(),
            ..hello("a")
        },
        Hello {
            fleet: long(),
            ..hello("a")
        },
    ] {
        let refused = registry.admit(Instant::now(), applicant(hello, 1)).unwrap_err();
        assert!(refused.to_string().contains("4096 bytes"), "{refused}");
    }
    admit(&mut registry, "a", 1).unwrap();
}

#[test]
fn a_guest_that_cannot_be_looked_at_is_carried_along_until_it_can() {
    let (now, kept) = (Instant::now(), kept("a", 1));
    let mut registry = registry();
    registry.take_over(&kept);
    for error in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
        let fates = fates(&registry, || unknown(error));
        assert_eq!(registry.take_back(now, fates), (false, Vec::new()));
        assert_eq!(registry.guests().count(), 0);
        assert_eq!(registry.kept(), (kept.groups.clone(), kept.guests.clone()));
    }
    assert_eq!(registry.take_remarks().len(), 1, "it is said once");
    // Its name is not free meanwhile.
    let refused = admit(&mut registry, "a", 2).unwrap_err();
    assert!(refused.to_string().contains("running already"), "{refused}");
    let found = fates(&registry, || Fate::Lives);
    let (changed, back) = registry.take_back(now, found);
    assert!(changed && back[0].1 == process(1), "{back:?}");
    assert_eq!(registry.kept(), (kept.groups.clone(), kept.guests.clone()));
    assert!(registry.unwatched().is_empty());
    // One whose process ends meanwhile is carried no further.
    registry = self::registry();
    registry.take_over(&kept);
    let found = fates(&registry, || Fate::Gone);
    assert_eq!(registry.take_back(now, found), (true, Vec::new()));
    assert_eq!(registry.kept(), (Vec::new(), Vec::new()));
}

#[test]
fn a_guest_that_could_not_be_looked_at_and_comes_by_itself_is_who_it_was() {
    let mut registry = registry();
    registry.take_over(&kept("a", 1));
    let id = admit(&mut registry, "a", 1).unwrap();
    let limits = registry.limits(id).unwrap();
    assert_eq!((limits.min, limits.shares), (32 * MIB, 1500));
    assert_eq!(registry.kept().1.len(), 1);
}

#[test]
fn nothing_is_handed_out_beyond_promises_until_survivors_are_heard_or_two_seconds_are_over() {
    for heard in [true, false] {
        let mut registry = registry();
        registry.take_over(&kept("a", 1));
        let found = fates(&registry, || Fate::Lives);
        registry.take_back(Instant::now(), found);
        registry.welcome_back();
        let old = registry.find("a").unwrap();
        let id = admit(&mut registry, "b", 2).unwrap();
        let given = |registry: &mut Registry, millis| {
            let round = registry.round(Duration::from_millis(millis)).unwrap();
            round.orders[&id].limit_bytes.unwrap()
        };
        for _ in 0..2 {
            assert_eq!(given(&mut registry, 100), 16 * MIB, "its minimum");
        }
        match heard {
            true => assert!(registry.on_report(old, Report::default())),
            false => {
                for _ in 0..9 {
                    assert_eq!(given(&mut registry, 200), 16 * MIB);
                }
            }
        }
        assert!(given(&mut registry, 100) > 100 * MIB);
    }
}

#[test]
fn a_guest_whose_minimum_is_all_of_its_memory_is_taken_back_into_a_group_without_one() {
    let mut registry = registry();
    let mut kept = kept("a", 1);
    kept.guests[0].min = kept.guests[0].size;
    registry.take_over(&kept);
    let found = fates(&registry, || Fate::Lives);
    registry.take_back(Instant::now(), found);
    registry.welcome_back();
    assert!(registry.find("a").is_some());
    let remarks = registry.take_remarks();
    assert!(
        remarks.iter().all(|(level, _)| *level != Level::Warn),
        "{remarks:?}"
    );
}

#[test]
fn nothing_is_handed_out_beyond_promises_as_long_as_a_pool_of_the_manager_before_may_be_missed() {
    let mut registry = registry();
    registry.take_over(&kept("a", 1));
    let fates = fates(&registry, || Fate::Lives);
    registry.take_back(Instant::now(), fates);
    registry.welcome_back();
    let id = registry.find("a").unwrap();
    assert_eq!(registry.survey()[0].pools, None);
    let pool = link::PoolSize {
        id: 77,
        bytes: 14 * MIB,
    };
    let report = Report {
        old_pools: vec![pool],
        ..Report::default()
    };
    // It is heard while the kernel is asked, which has not shown its pools.
    assert!(registry.on_report(id, report));
    let misses_pools = |misses_pools| Measured {
        misses_pools,
        ..Measured::default()
    };
    registry.take_in(&misses_pools(true));
    assert!(!registry.settle_down(Duration::from_millis(250)));
    assert_eq!(registry.survey()[0].pools, Some(vec![pool]));
    registry.take_in(&misses_pools(false));
    assert!(registry.settle_down(Duration::from_millis(250)));
    // A process that is never heard holds the others up for no longer than its time to return.
    registry.take_in(&misses_pools(true));
    assert!(!registry.settle_down(Duration::from_secs(2)));
    assert!(registry.settle_down(Duration::from_millis(250)));
}

#[test]
fn a_groups_min_that_does_not_fit_is_what_is_named() {
    let mut registry = registry();
    let refused = |registry: &mut Registry, min_mib: u64, own_mib: u64| {
        let group = GroupLimits {
            name: "db".into(),
            shares: 1000,
            min: min_mib * MIB,
            max: None,
        };
        let hello = Hello {
            group: Some(group),
            ..Hello::new("x", 2000 * MIB).with_min(own_mib * MIB)
        };
        let error = registry.admit(Instant::now(), applicant(hello, 1)).unwrap_err();
        error.to_string()
    };
    let words = refused(&mut registry, 3000, 16);
    assert!(
        words.contains("group db: ") && words.contains("(3000.0 MiB)"),
        "{words}"
    );
    // All that is missing, not what is missing for the guest.
    let missing: u64 = words.split_whitespace().nth(2).unwrap().parse().unwrap();
    assert!((1976..2500).contains(&(missing / 256)), "{words}");
    // A guest that would not fit without its group is told of itself.
    let words = refused(&mut registry, 0, 1500);
    assert!(
        words.contains("does not fit") && !words.contains("group db"),
        "{words}"
    );
    // And a bad domain is not taken for the guest's name.
    let hello = hello("x").in_domain("a/b");
    let words = registry
        .admit(Instant::now(), applicant(hello, 1))
        .unwrap_err()
        .to_string();
    assert!(words.contains("\"a/b\" is not a domain name"), "{words}");
}

#[test]
fn free_memory_and_state_are_those_of_a_new_budget_at_once() {
    let mut registry = registry();
    let id = admit(&mut registry, "a", 1).unwrap();
    registry.take_in(&Measured {
        counted: vec![(id, holds(120))],
        ..Measured::default()
    });
    registry.round(Duration::from_secs(1)).unwrap();
    let shown = |registry: &Registry| {
        registry
            .last_round()
            .map(|round| (round.free, round.state))
            .unwrap()
    };
    assert_eq!(shown(&registry), ((1024 - 120) * 256, allocator::State::High));
    registry.set(Settings::new(Pages::from_mib(123))).unwrap();
    let told = shown(&registry);
    registry.round(Duration::from_secs(1)).unwrap();
    assert_eq!((told, told.0), (shown(&registry), 3 * 256));
    assert_ne!(told.1, allocator::State::High);
}
