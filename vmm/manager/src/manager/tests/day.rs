//! A simulated day: a hundred guests come, report, wait, fall silent, die and restart in random order.

use std::time::Duration;

use allocator::Pages;

use super::guest::MOST;
use super::world::World;

const HOUR: Duration = Duration::from_secs(3600);

/// Each hour has half a minute in which many guests are there, two minutes with a few, and then none. The manager is
/// replaced every six hours, when many are there.
#[test]
fn what_must_hold_holds_after_every_event_of_a_simulated_day() {
    let mut world = World::new(1, MOST, Pages::from_mib(9 << 10));
    for hour in 0..24 {
        let many = if hour % 6 == 0 { MOST } else { MOST / 4 };
        world.run(HOUR / 120, many);
        assert!(world.alive() > many * 3 / 4, "{} guests", world.alive());
        if hour % 6 == 0 {
            world.replace_manager();
        }
        world.run(HOUR / 30, 3);
        world.run(HOUR - HOUR / 120 - HOUR / 30, 0);
    }
    let tally = &world.tally;
    assert_eq!(world.now - world.began, HOUR * 24);
    assert!(
        tally.rounds > 24 * 3000 && tally.orders > tally.rounds / 2,
        "{tally:?}"
    );
    assert!(tally.admitted > 1000 && tally.deaths > 900, "{tally:?}");
    assert!(
        tally.waits > 1000 && tally.offences > 5 && tally.refused > 5,
        "{tally:?}"
    );
    assert!(tally.cut_off_silent > 5 && tally.managers == 4, "{tally:?}");
}
