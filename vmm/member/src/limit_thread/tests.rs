//! The thread over memory of this process.

use levy_protocol::link::{Line, Lines};

use super::*;
use crate::test_guest::{MIB, TestGuest, until};

#[test]
fn a_limit_is_carried_out_and_holds_without_the_manager_that_set_it() {
    let guest = TestGuest::full(8);
    let limits = LimitThread::start(guest.region(), 2 * MIB, Threads::default()).unwrap();
    let (here, manager) = UnixStream::pair().unwrap();
    limits.connect(here);
    // This process holds far more.
    limits.set_limit(Some(MIB), 0);
    let mut lines = Lines::default();
    let heard = std::iter::from_fn(|| match lines.next::<FromVmm>(&mut &manager) {
        Ok(Line::Message(FromVmm::LimitStatus(status))) => Some(status),
        other => panic!("{other:?}"),
    });
    let gated = heard
        .filter(|status| status.gated)
        .map(|status| status.limit_bytes);
    assert_eq!(gated.take(1).collect::<Vec<_>>(), [Some(MIB)]);
    until("pages go", || guest.away() > 0);
    limits.lose_manager();
    until("the minimum is left", || limits.reclaimer().spare() == 0);
    let away = guest.away();
    assert!(
        (6 * MIB..=6 * MIB + 2 * MIB / 64).contains(&away),
        "{away} bytes away"
    );
}

#[test]
fn every_page_comes_back_once_the_limit_is_lifted() {
    let guest = TestGuest::full(4);
    let limits = LimitThread::start(guest.region(), 0, Threads::default()).unwrap();
    limits.set_limit(Some(MIB), 0);
    until("pages go", || guest.away() > 0);
    limits.set_limit(Some(1 << 40), 0);
    // At a gate that stays closed this would wait for ever.
    guest.assert_full();
    until("all pages are back", || {
        guest.assert_full();
        guest.away() == 0
    });
}
