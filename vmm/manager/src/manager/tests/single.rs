//! What single events lead to.

use std::time::{Duration, Instant};

use allocator::{GuestId, Pages, Shares};

use crate::kept::{Kept, KeptSettings};
use crate::manager::{Change, Effect, Event, Heard, Manager};
use crate::policy::Settings;
use crate::registry::{Applicant, Fate, ProcessId};
use crate::survey::Measured;
use levy_protocol::link::{FromManager, Hello, LimitStatus, Report, SwapRoom};
use levy_protocol::process_memory::{Counted, Held};

const SECOND: Duration = Duration::from_secs(1);

fn manager(now: Instant) -> Manager {
    Manager::new(now, Settings::new(Pages::from_mib(1024)), Pages::from_mib(4096))
}

/// Process `pid` introduces itself as `name` on the connection with its number.
fn introduce(manager: &mut Manager, now: Instant, (name, pid): (&str, u32)) -> Vec<Effect> {
    assert!(manager.lets_connect(now, pid));
    let connection = pid.into();
    manager.handle(now, Event::Connected { connection, pid });
    let process = ProcessId { pid, started: 7 };
    let applicant = Applicant {
        hello: Hello::new(name, 64 << 20).with_min(16 << 20),
        process,
        domain: Ok(()),
        swap_device: None,
    };
    manager.handle(
        now,
        Event::Introduced {
            connection,
            applicant: Ok(applicant),
            hung_up: false,
        },
    )
}

fn change_shares(manager: &mut Manager, guest: GuestId, shares: u32) {
    let mut limits = manager.registry().member(guest).unwrap().limits;
    limits.shares = Shares::new(shares);
    manager.change(Change::Limits(guest, limits)).unwrap();
}

/// The shares that guests are told, and for each welcome none.
fn told(effects: &[Effect]) -> Vec<Option<u32>> {
    let shares = effects.iter().flat_map(|effect| match effect {
        Effect::Welcome { limits, .. } => {
            let limits = limits.as_ref().map(|limits| Some(limits.shares));
            [None].into_iter().chain(limits).collect()
        }
        Effect::Send(_, FromManager::Limits(limits)) => vec![Some(limits.shares)],
        _ => Vec::new(),
    });
    shares.collect()
}

#[test]
fn limits_that_change_between_admission_and_welcome_are_told() {
    let now = Instant::now();
    let mut manager = manager(now);
    let effects = introduce(&mut manager, now, ("a", 1));
    assert!(effects.contains(&Effect::Persist) && told(&effects).is_empty());
    let guest = manager.registry().find("a").unwrap();
    change_shares(&mut manager, guest, 1234);
    let effects = manager.handle(now, Event::Persisted(manager.snapshot()));
    assert_eq!(told(&effects), [None, Some(1234)]);
    assert_eq!(
        told(&manager.handle(now, Event::Persisted(manager.snapshot()))),
        []
    );
}

#[test]
fn a_guest_that_is_admitted_while_the_file_is_written_waits_for_the_next_and_a_returning_one_for_none() {
    let now = Instant::now();
    let mut manager = manager(now);
    let before = manager.snapshot();
    introduce(&mut manager, now, ("a", 1));
    assert_eq!(told(&manager.handle(now, Event::Persisted(before))), []);
    let snapshot = manager.snapshot();
    assert_eq!(told(&manager.handle(now, Event::Persisted(snapshot))), [None]);
    manager.handle(now, Event::Said(1, Heard::Closed));
    let effects = introduce(&mut manager, now, ("a", 1));
    assert_eq!(told(&effects), [None]);
    assert!(!effects.contains(&Effect::Persist));
    // What is written down of it is old.
    let guest = manager.registry().find("a").unwrap();
    change_shares(&mut manager, guest, 1234);
    manager.handle(now, Event::Said(1, Heard::Closed));
    let effects = introduce(&mut manager, now, ("a", 1));
    assert!(effects.contains(&Effect::Persist) && told(&effects).is_empty());
}

#[test]
fn what_is_told_last_is_what_holds() {
    let now = Instant::now();
    let mut manager = manager(now);
    introduce(&mut manager, now, ("a", 1));
    assert_eq!(
        told(&manager.handle(now, Event::Persisted(manager.snapshot()))),
        [None]
    );
    let guest = manager.registry().find("a").unwrap();
    // Two clients change them; the first is slow to tell.
    change_shares(&mut manager, guest, 1100);
    change_shares(&mut manager, guest, 1200);
    for _ in 0..2 {
        let effects = manager.handle(now, Event::LimitsChanged(vec![guest]));
        assert_eq!(told(&effects), [Some(1200)]);
    }
}

#[test]
fn a_process_that_breaks_the_protocol_is_cut_off_kept_out_and_still_who_it_was() {
    let now = Instant::now();
    let mut manager = manager(now);
    introduce(&mut manager, now, ("a", 1));
    manager.handle(now, Event::Persisted(manager.snapshot()));
    let guest = manager.registry().find("a").unwrap();
    let effects = manager.handle(now, Event::Said(1, Heard::Malformed("garbage".into())));
    assert!(effects.contains(&Effect::HangUp(guest)) && effects.contains(&Effect::Close(1)));
    let refused = introduce(&mut manager, now, ("a", 1));
    let reply = |effect: &Effect| matches!(effect, Effect::Reply(1, FromManager::Refused { .. }));
    assert!(refused.iter().any(reply), "{refused:?}");
    let later = now + SECOND * 3;
    let effects = introduce(&mut manager, later, ("a", 1));
    assert!(
        matches!(effects[0], Effect::Watch(same, _) if same == guest),
        "{effects:?}"
    );
}

#[test]
fn a_connection_without_hello_is_refused_after_two_seconds() {
    let begin = Instant::now();
    let mut manager = manager(begin);
    assert!(manager.lets_connect(begin, 1));
    manager.handle(
        begin,
        Event::Connected {
            connection: 9,
            pid: 1,
        },
    );
    manager.handle(begin, Event::Listened);
    let mut closed = None;
    for looks in 1..20 {
        let now = begin + SECOND / 4 * looks;
        if manager.handle(now, Event::Listened).contains(&Effect::Close(9)) {
            closed = closed.or(Some(now - begin));
        }
    }
    assert_eq!(closed, Some(SECOND / 4 * 9));
    let report = Heard::Report(Box::default(), None);
    assert_eq!(manager.handle(begin, Event::Said(9, report)), []);
}

#[test]
fn a_welcome_that_does_not_go_out_leaves_the_guest_admitted_and_not_connected() {
    let now = Instant::now();
    let mut manager = manager(now);
    introduce(&mut manager, now, ("a", 1));
    manager.handle(now, Event::Persisted(manager.snapshot()));
    let effects = manager.handle(now, Event::Unwelcomed(1, "broken pipe".into()));
    assert!(effects.contains(&Effect::Close(1)));
    let (_, process) = manager.registry().guests().next().unwrap();
    assert!(!process.connected);
    assert_eq!(manager.statistics().counters.refused, 1);
}

#[test]
fn a_message_that_did_not_go_out_is_sent_with_the_next_round() {
    let begin = Instant::now();
    let mut manager = manager(begin);
    introduce(&mut manager, begin, ("a", 1));
    manager.handle(begin, Event::Persisted(manager.snapshot()));
    let guest = manager.registry().find("a").unwrap();
    let mut now = begin;
    let mut round = |manager: &mut Manager| {
        now = manager.round_due().max(now);
        manager.handle(now, Event::Clock);
        let effects = manager.handle(now, Event::Measured(Default::default()));
        let (cpu, work) = (Duration::ZERO, Duration::ZERO);
        manager.handle(now, Event::RoundEnded { cpu, work });
        // As if a guest waited: the next round is due at once.
        manager.hurry();
        let sent = |effect: &Effect| matches!(effect, Effect::Send(_, FromManager::Orders(_)));
        effects.iter().any(sent)
    };
    assert!(round(&mut manager));
    assert!(!round(&mut manager), "it says nothing new");
    manager.handle(begin, Event::Unsent(guest, None));
    assert!(round(&mut manager));
}

#[test]
fn what_a_guest_sent_while_the_manager_did_not_run_is_no_flood() {
    let begin = Instant::now();
    let mut manager = manager(begin);
    introduce(&mut manager, begin, ("a", 1));
    manager.handle(begin, Event::Persisted(manager.snapshot()));
    manager.handle(begin, Event::Listened);
    // It waits at its gate, and says so forty times a second.
    let later = begin + SECOND * 7;
    let status = LimitStatus::default;
    for _ in 0..7 * 40 {
        let effects = manager.handle(later, Event::Said(1, Heard::LimitStatus(status())));
        assert!(!effects.contains(&Effect::Close(1)), "{effects:?}");
    }
    manager.handle(later, Event::Listened);
    assert_eq!(manager.statistics().counters.cut_offs, 0);
    // It is not free to send what it likes after that.
    let flood = (0..1000).map(|_| manager.handle(later, Event::Said(1, Heard::LimitStatus(status()))));
    assert!(flood.flatten().any(|effect| effect == Effect::Close(1)));
}

#[test]
fn the_time_before_a_manager_listens_is_not_missed() {
    let begin = Instant::now();
    let mut manager = manager(begin);
    // It has looked for the guests of the manager before until now.
    assert_eq!(manager.handle(begin + SECOND * 5, Event::Listened), []);
    let effects = manager.handle(begin + SECOND * 10, Event::Listened);
    assert!(matches!(effects[..], [Effect::Log(..)]), "{effects:?}");
}

#[test]
fn a_guest_that_breaks_the_protocol_before_it_is_welcomed_is_not_welcomed() {
    let now = Instant::now();
    let mut manager = manager(now);
    introduce(&mut manager, now, ("a", 1));
    let guest = manager.registry().find("a").unwrap();
    let ended = Event::PagesEnded {
        guest: Some(guest),
        reason: "garbage".into(),
        offence: true,
    };
    manager.handle(now, ended);
    let effects = manager.handle(now, Event::Persisted(manager.snapshot()));
    let welcome = |effect: &Effect| matches!(effect, Effect::Welcome { .. });
    assert!(
        !effects.iter().any(welcome) && effects.contains(&Effect::Close(1)),
        "{effects:?}"
    );
    assert!(!manager.registry().guests().next().unwrap().1.connected);
}

#[test]
fn the_end_of_a_round_that_did_not_begin_is_not_timed() {
    let begin = Instant::now();
    let mut manager = manager(begin);
    let (cpu, work) = (Duration::ZERO, Duration::from_millis(3));
    manager.handle(begin, Event::Clock);
    manager.handle(begin, Event::RoundEnded { cpu, work });
    let rounds = &manager.statistics().rounds;
    assert_eq!((rounds.count, rounds.work.spread().count), (0, 0));
}

#[test]
fn a_guest_that_stands_above_its_limit_is_named_once_with_the_reason() {
    let mut now = Instant::now();
    let mut manager = manager(now);
    introduce(&mut manager, now, ("a", 1));
    manager.handle(now, Event::Persisted(manager.snapshot()));
    let guest = manager.registry().find("a").unwrap();
    manager
        .change(Change::Settings(Settings::new(Pages::from_mib(48))))
        .unwrap();
    let mut lines = Vec::new();
    for free_bytes in [0, 0, 0, 0, 0, 0, 1 << 30] {
        let swap = SwapRoom {
            device: 7,
            free_bytes,
            spare_bytes: 4096,
        };
        let report = Report {
            swap: Some(swap),
            ..Report::default()
        };
        manager.handle(now, Event::Said(1, Heard::Report(Box::new(report), None)));
        now = manager.round_due().max(now + SECOND);
        manager.handle(now, Event::Clock);
        let held = Held {
            anonymous: 60 << 20,
            page_tables: 0,
        };
        let mappings = Some(0);
        let measured = Measured {
            counted: vec![(guest, Counted { held, mappings })],
            ..Measured::default()
        };
        let effects = manager.handle(now, Event::Measured(measured));
        lines.extend(effects.into_iter().filter_map(|effect| match effect {
            Effect::Log(_, line) => Some(line),
            _ => None,
        }));
        let (cpu, work) = (Duration::ZERO, Duration::ZERO);
        manager.handle(now, Event::RoundEnded { cpu, work });
    }
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].contains("\"a\"") && lines[0].contains("swap full"),
        "{lines:?}"
    );
    assert!(lines[1].contains("gives up no more"), "{lines:?}");
}

#[test]
fn a_manager_that_takes_over_says_how_many_guests_it_took_back() {
    let now = Instant::now();
    let mut before = manager(now);
    for guest in [("a", 1), ("b", 2)] {
        introduce(&mut before, now, guest);
    }
    let (groups, guests) = before.registry().kept();
    let fates = guests.iter().map(|guest| (guest.process(), Fate::Lives));
    let fates = fates.collect();
    let kept = Kept::new(KeptSettings::default(), groups, guests);
    let effects = manager(now).handle(now, Event::TookOver(kept, fates));
    let said = |effect: &Effect| matches!(effect, Effect::Log(_, line) if line.starts_with("2 guests of the manager"));
    assert!(effects.iter().any(said), "{effects:?}");
}

#[test]
fn only_time_without_the_manager_that_is_worth_a_word_is_named() {
    let now = Instant::now();
    let mut manager = manager(now);
    manager.handle(now, Event::Listened);
    let mut logged = |millis| {
        let effects = manager.handle(now + Duration::from_millis(millis), Event::Listened);
        let lines = effects.into_iter().filter_map(|effect| match effect {
            Effect::Log(_, line) => Some(line),
            _ => None,
        });
        lines.collect::<Vec<_>>()
    };
    // Half a second is a pause of one that listens.
    assert_eq!(logged(540), Vec::<String>::new());
    assert_eq!(logged(1140), ["the manager did not run for 0.1 s"]);
}

#[test]
fn time_without_the_manager_is_made_up_for_however_short_it_is() {
    let now = Instant::now();
    // How many messages guest "a" may send in a row after so long without a look.
    let in_a_row = |millis| {
        let mut manager = manager(now);
        introduce(&mut manager, now, ("a", 1));
        manager.handle(now, Event::Persisted(manager.snapshot()));
        manager.handle(now, Event::Listened);
        let later = now + Duration::from_millis(millis);
        manager.handle(later, Event::Listened);
        let mut say = || {
            let said = Heard::LimitStatus(LimitStatus::default());
            manager.handle(later, Event::Said(1, said))
        };
        (0..10_000)
            .take_while(|_| !say().contains(&Effect::Close(1)))
            .count()
    };
    // Half a second is a pause of one that listens, and 60 messages a second are made up for.
    assert_eq!(in_a_row(590), in_a_row(500) + 5);
}
