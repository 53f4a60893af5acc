//! Limits, one distribution at a time.

use super::*;

fn place(held: u64, entitled: u64, weight: u64) -> Place {
    Place {
        guest: GuestId::new(0),
        group: None,
        held,
        overrun: 0,
        in_force: held,
        overhead: 0,
        entitled,
        promised: 10,
        most: 1000,
        short: 0,
        weight,
        stuck: false,
        wish: held,
        rise: Rise::default(),
    }
}

fn wishes(places: &[Place]) -> Vec<u64> {
    places.iter().map(|place| place.wish).collect()
}

fn shared<const N: usize>(mut places: [Place; N], free: u64) -> Vec<u64> {
    share(&mut places, &[], free);
    wishes(&places)
}

fn cuts<const N: usize>(mut places: [Place; N], excess: u64) -> Vec<u64> {
    cut_all(&mut places, excess);
    wishes(&places)
}

#[test]
fn what_one_cannot_use_goes_to_the_others() {
    let full = place(995, 500, 1);
    assert_eq!(shared([full, place(100, 500, 1)], 105), [1000, 200]);
    assert_eq!(shared([full, full], 100), [1000, 1000]);
}

#[test]
fn a_guest_that_waits_and_is_entitled_gets_most() {
    let limits = shared(
        [place(100, 500, ENTITLED), place(100, 50, 1), place(100, 50, 0)],
        66,
    );
    assert_eq!(limits, [164, 102, 100]);
}

#[test]
fn a_group_gets_what_its_max_leaves_and_the_rest_goes_to_the_others() {
    let inside = |held| Place {
        group: Some(GroupId::new(0)),
        ..place(held, 500, 1)
    };
    let mut places = [inside(100), place(100, 500, 1), inside(50)];
    let group = CappedGroup {
        members: vec![0, 2],
        most: 180,
    };
    share(&mut places, &[group], 300);
    assert_eq!(wishes(&places), [115, 370, 65]);
}

#[test]
fn cuts_fall_on_those_above_their_target_and_spare_the_promised() {
    assert_eq!(cuts([place(300, 100, 1), place(100, 100, 1)], 50), [250, 100]);
    // More than all guests are above their targets: those at theirs give too, down to the promise.
    let limits = cuts([place(300, 100, 1), place(100, 100, 1)], 290);
    assert_eq!(limits.iter().sum::<u64>(), 110);
    assert!(limits.iter().all(|&limit| limit >= 10), "{limits:?}");
    assert_eq!(cuts([place(300, 100, 1)], 10_000), [10]);
}

#[test]
fn what_one_cannot_give_up_is_asked_of_its_neighbour_above_its_promise() {
    let stuck = Place {
        stuck: true,
        ..place(300, 100, 1)
    };
    // The stuck one is still asked, and the other one for the same as well.
    assert_eq!(cuts([stuck, place(100, 100, 1)], 50), [250, 50]);
    assert_eq!(cuts([stuck, place(300, 100, 1)], 100), [250, 200]);
    // Never for what was promised.
    assert_eq!(cuts([stuck, place(30, 20, 1)], 200), [110, 10]);
    assert_eq!(cuts([stuck], 50), [250]);
}

/// What rises from `now` to `wish` with 64 promised, of `most` for all.
fn risen<const N: usize>(rises: [(u64, u64); N], most: u64) -> Vec<u64> {
    let mut places = rises.map(|(now, wish)| Place {
        rise: Rise::new(now, wish, 64),
        ..place(now, 500, 1)
    });
    let all: Vec<usize> = (0..N).collect();
    allow(&mut places, &all, most);
    places.iter().map(|place| place.rise.all()).collect()
}

#[test]
fn limits_rise_to_what_was_promised_before_any_other_rises() {
    let (booting, waiting) = ((20, 164), (100, 400));
    assert_eq!(risen([booting, waiting], 150), [30, 0]);
    assert_eq!(risen([booting, waiting], 164), [44, 0]);
    // 100 and 300 beyond.
    assert_eq!(risen([booting, waiting], 204), [54, 30]);
    assert_eq!(risen([booting, waiting], 10_000), [144, 300]);
    assert_eq!(risen([(100, 50), waiting], 210), [0, 10]);
}

#[test]
fn a_promise_is_kept_although_a_neighbour_took_more_than_it_was_given() {
    let runaway = Place {
        overrun: 500,
        ..place(700, 100, 0)
    };
    let mut places = [
        runaway,
        Place {
            rise: Rise::new(20, 100, 64),
            ..place(20, 100, 1)
        },
    ];
    allow(&mut places, &[0, 1], 700);
    assert_eq!(
        places[1].rise,
        Rise {
            promised: 44,
            beyond: 0
        }
    );
}
