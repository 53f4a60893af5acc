//! Who is let in and taken back, with processes that are real.

use std::io;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::kept::{Kept, KeptGuest, KeptSettings};
use levy_protocol::link::{GroupLimits, Hello, VERSION};

const MIB: u64 = 1 << 20;

/// A process that lives until this is dropped.
struct Other(Child);

impl Other {
    fn start() -> Self {
        let mut cat = Command::new("cat");
        Self(cat.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn process(&self) -> GuestProcess {
        GuestProcess::of_child(self.0.id()).unwrap()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn registry() -> Registry {
    Registry::new(Settings::new(Pages::from_mib(1024)), Pages::from_mib(4096))
}

fn hello(name: &str) -> Hello {
    Hello::new(name, 128 * MIB).with_min(16 * MIB)
}

/// What a manager before kept of the guest `name`, which `other` runs.
fn kept(name: &str, other: &Other) -> Kept {
    let guest = KeptGuest {
        name: name.to_owned(),
        pid: other.0.id(),
        started: other.process().started().unwrap(),
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
    let (mut registry, one, other) = (registry(), Other::start(), Other::start());
    registry.admit(&hello("a"), one.process()).unwrap();
    let refused = registry.admit(&hello("b"), one.process()).unwrap_err();
    assert!(
        refused.to_string().contains("runs the guest \"a\" already"),
        "{refused}"
    );
    registry.admit(&hello("b"), other.process()).unwrap();
    assert_eq!(registry.guests().count(), 2);
    registry.allow_several_in_one_process();
    registry.admit(&hello("c"), one.process()).unwrap();
}

#[test]
fn no_guest_names_a_path_that_is_longer_than_any() {
    let (mut registry, one) = (registry(), Other::start());
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
        let refused = registry.admit(&hello, one.process()).unwrap_err();
        assert!(refused.to_string().contains("4096 bytes"), "{refused}");
    }
    registry.admit(&hello("a"), one.process()).unwrap();
}

#[test]
fn a_guest_that_cannot_be_looked_at_is_carried_along_until_it_can() {
    let other = Other::start();
    let kept = kept("a", &other);
    let mut registry = registry();
    for error in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
        registry.take_back_by(&kept, &|_, _| Err(io::Error::from_raw_os_error(error)));
        assert_eq!(registry.guests().count(), 0);
        assert_eq!(registry.kept(), (kept.groups.clone(), kept.guests.clone()));
    }
    // Its name is not free meanwhile.
    let stranger = Other::start();
    let refused = registry.admit(&hello("a"), stranger.process()).unwrap_err();
    assert!(refused.to_string().contains("running already"), "{refused}");
    let (changed, back) = registry.watch_again();
    assert!(changed && back[0].1 == other.0.id(), "{back:?}");
    assert_eq!(registry.kept(), (kept.groups.clone(), kept.guests.clone()));
    assert_eq!(registry.watch_again(), (false, Vec::new()));
    // One whose process ends meanwhile is carried no further.
    registry = self::registry();
    registry.take_back_by(&kept, &|_, _| Err(io::Error::from_raw_os_error(libc::EMFILE)));
    drop(other);
    assert_eq!(registry.watch_again(), (true, Vec::new()));
    assert_eq!(registry.kept(), (Vec::new(), Vec::new()));
}

#[test]
fn a_guest_that_could_not_be_looked_at_and_comes_by_itself_is_who_it_was() {
    let other = Other::start();
    let mut registry = registry();
    registry.take_back_by(&kept("a", &other), &|_, _| {
        Err(io::Error::from_raw_os_error(libc::EMFILE))
    });
    let id = registry.admit(&hello("a"), other.process()).unwrap();
    let limits = registry.limits(id).unwrap();
    assert_eq!((limits.min, limits.shares), (32 * MIB, 1500));
    assert_eq!(registry.kept().1.len(), 1);
}

#[test]
fn nothing_is_handed_out_beyond_promises_until_survivors_are_heard_or_two_seconds_are_over() {
    for heard in [true, false] {
        let (survivor, new) = (Other::start(), Other::start());
        let mut registry = registry();
        registry.take_back(&kept("a", &survivor));
        let old = registry.find("a").unwrap();
        let id = registry.admit(&hello("b"), new.process()).unwrap();
        let given = |registry: &mut Registry, millis| {
            let round = registry.round(Duration::from_millis(millis)).unwrap();
            round.orders[&id].limit_bytes.unwrap()
        };
        for _ in 0..2 {
            assert_eq!(given(&mut registry, 100), 16 * MIB, "its minimum");
        }
        match heard {
            true => registry.on_report(old, Report::default()),
            false => {
                for _ in 0..9 {
                    assert_eq!(given(&mut registry, 200), 16 * MIB);
                }
            }
        }
        assert!(given(&mut registry, 100) > 100 * MIB);
    }
}
