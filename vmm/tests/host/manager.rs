//! A manager and a guest's engine: admission, sharing through the page socket, orders, a manager that goes away.

use std::os::unix::net::UnixStream;

use allocator::Pages;
use levy_manager::host::Host;
use levy_manager::policy::Settings;
use levy_member::{ConnectError, Introduction};
use levy_protocol::api::{GuestChange, Phase};
use levy_protocol::link::{FromManager, FromVmm, Hello, Lines, VERSION};
use levy_protocol::run_dir::Sockets;
use page_share::port::{Port, Report};
use page_share::{Gfn, PAGE_SIZE, PageHasher, SocketPort};
use vm_memory::{Bytes, GuestAddress};

use crate::harness::{CONTENTS, MIB, Managed, PATIENCE, TOUCHED_PAGES, Told, hello, until};

#[test]
fn a_guests_equal_pages_become_one_through_the_manager_and_outlive_it() {
    let managed = Managed::new(256);
    let host = &managed.host;
    let guest = managed.attend("g1");
    until("merging", || {
        let stats = guest.region.stats();
        // What is away for a sample at this moment is merged when it is back. Zero pages may be gone altogether: where
        // growth is gated, and here all tests' memory counts as this guest's, their next touch asks first.
        let left = stats.private + stats.huge + stats.broken + stats.in_transit;
        left == 0 && stats.shared > 0 && stats.pages_zeroed > 0
    });
    guest.check();
    until("the guest's report", || {
        host.registry()
            .guests()
            .any(|(member, _)| member.report.pages.shared > 0 && member.report.pages.private <= 100)
    });
    let pool = host.domains()["test"].with(|domain| domain.sizes().pool_pages);
    assert_eq!(pool.map(u64::from), Some(CONTENTS));
    assert!(host.registry().spent().pools >= Pages::new(CONTENTS));

    let id = host
        .registry()
        .guests()
        .next()
        .map(|(member, _)| member.id)
        .unwrap();
    host.tell(id, &FromManager::Pause);
    host.tell(id, &FromManager::Stop { grace_ms: None });
    let told = |expected| assert_eq!(guest.told.recv_timeout(PATIENCE), Ok(expected));
    told(Told::Pause(true));
    told(Told::Stop);

    host.close();
    guest.check();
    let view = guest.ram.view();
    view.write_slice(&7_u64.to_le_bytes(), GuestAddress(8)).unwrap();
    let mut word = [0; 8];
    view.read_slice(&mut word, GuestAddress(8)).unwrap();
    assert_eq!(u64::from_le_bytes(word), 7);
}

/// Pages of RAM and frame numbers are as many up to 3 GiB and differ above; where memory is not a whole number of huge
/// pages its last block is not like the others.
#[test]
fn a_guest_of_any_size_shares_its_pages() {
    for mib in [13, 3073, 3328, 3500] {
        let managed = Managed::new(256);
        let guest = managed.attend_as(Hello {
            min: 8 * MIB,
            ..hello("g1", mib)
        });
        until(&format!("sharing in a guest of {mib} MiB"), || {
            guest.region.stats().shared > 0
        });
        until("a report that the manager believes", || {
            let host = managed.host.registry();
            host.guests().any(|(member, _)| member.report.pages.shared > 0)
        });
        guest.check();
    }
}

/// Whether `test` has a process of its own; otherwise runs it in one. A manager counts all that a guest's process holds:
/// together with the guests of other tests this one would be above its limit, compress every page, and have none to
/// sample.
fn alone(test: &str) -> bool {
    const ALONE: &str = "LEVY_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    false
}

#[test]
fn a_paused_guest_is_seen_as_paused_and_not_as_idle() {
    if !alone("manager::a_paused_guest_is_seen_as_paused_and_not_as_idle") {
        return;
    }
    let managed = Managed::new(256);
    let guest = managed.attend("g1");
    // Pages that nothing shares: only such are sampled.
    for page in TOUCHED_PAGES..TOUCHED_PAGES + 512 {
        let at = GuestAddress(page * 4096);
        guest.ram.view().write_slice(&page.to_le_bytes(), at).unwrap();
    }
    let activity = || managed.client().guest("g1").unwrap().activity.fraction;
    // Nothing was measured yet: all of it may be in use.
    assert!(activity() > 0.99);
    managed.client().direct("g1", "pause").unwrap();
    // The manager says so from its order on, the guest's process stands still once it has heard of it.
    assert_eq!(guest.told.recv_timeout(PATIENCE), Ok(Told::Pause(true)));
    until("the end of the sample under way", || {
        guest.region.stats().sampled == 0
    });
    let taken = guest.region.stats().samples_taken;
    managed.until_reports(4);
    assert_eq!(managed.client().guest("g1").unwrap().phase, Phase::Paused);
    assert_eq!(
        guest.region.stats().samples_taken,
        taken,
        "a paused guest is not sampled"
    );
    assert!(activity() > 0.99, "{}", activity());
    managed.client().direct("g1", "resume").unwrap();
    until("sampling", || guest.region.stats().samples_taken > taken);
}

#[test]
fn limits_changed_at_run_time_are_kept_by_the_guest_for_the_next_manager() {
    let managed = Managed::new(256);
    let dir = managed.dir.path().to_owned();
    let _guest = managed.attend("g1");
    let change = GuestChange {
        shares: Some(2000),
        min_bytes: Some(8 * MIB),
    };
    managed.client().change_guest("g1", &change).unwrap();
    // By a guest that has read of the change.
    managed.until_reports(2);
    managed.host.close();
    let settings = Settings::new(Pages::from_mib(256));
    let next = Host::open(Sockets::in_dir(&dir), settings, Pages::from_mib(4096)).unwrap();
    let limits = || next.registry().guests().next().map(|(member, _)| member.limits);
    until("the guest's return", || limits().is_some());
    assert_eq!(
        limits().map(|limits| (limits.shares.get(), limits.min)),
        Some((2000, Pages::from_mib(8)))
    );
    next.close();
}

#[test]
fn refusals_name_what_is_wrong() {
    let managed = Managed::new(256);
    let refusal = |hello: Hello| match Introduction::make(managed.dir.path(), hello) {
        Err(ConnectError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let too_large = Hello {
        min: 512 * MIB,
        ..hello("big", 1024)
    };
    assert!(refusal(too_large).contains("MiB"), "names sizes");
    assert!(
        refusal(Hello {
            min: 2 * MIB,
            ..hello("odd", 1)
        })
        .contains("min")
    );
    assert!(refusal(hello("no spaces", 16)).contains("not a guest name"));
    assert!(
        refusal(Hello {
            shares: 0,
            ..hello("none", 16)
        })
        .contains("shares")
    );
    assert!(
        refusal(Hello {
            version: VERSION + 1,
            oldest: None,
            ..hello("new", 16)
        })
        .contains("version")
    );

    let kept = managed.introduce(hello("twin", 16));
    assert!(refusal(hello("twin", 16)).contains("running already"));
    drop(kept);
    managed.host.close();
    let gone = Introduction::make(managed.dir.path(), hello("late", 16)).unwrap_err();
    assert!(gone.to_string().contains("levy host"), "{gone}");
}

#[test]
fn a_second_manager_in_the_same_place_is_refused() {
    let managed = Managed::new(256);
    let settings = Settings::new(Pages::from_mib(256));
    let error = Host::open(Sockets::in_dir(managed.dir.path()), settings, Pages::ZERO).unwrap_err();
    assert!(
        error.to_string().contains("another manager is running"),
        "{error}"
    );
}

/// Connects as a guest's process does, and says who it is.
fn knock(managed: &Managed) -> UnixStream {
    let stream = UnixStream::connect(Sockets::in_dir(managed.dir.path()).guests).unwrap();
    Lines::send(&mut &stream, &FromVmm::Hello(hello("away", 16))).unwrap();
    stream
}

#[test]
fn a_living_guest_that_cannot_be_welcomed_keeps_its_place_and_what_it_may_map() {
    let managed = Managed::new(512);
    let references = || {
        let domains = managed.host.domains();
        let domain = domains.get("test").expect("its guest lives");
        domain.with(|domain| domain.sizes().references).unwrap()
    };
    let connected = || {
        managed
            .host
            .registry()
            .guests()
            .any(|(_, process)| process.connected)
    };
    let link = knock(&managed);
    until("admission", connected);
    let pages = Sockets::in_dir(managed.dir.path()).pages;
    let mut port = SocketPort::attach(4096, move || UnixStream::connect(&pages)).unwrap();
    let sketch = PageHasher::new(&port.session().key).sketch(&[7; PAGE_SIZE]);
    let reports = [1, 2].map(|gfn| Report {
        gfn: Gfn::new(gfn),
        sketch,
    });
    port.report(&reports, &mut Vec::new()).unwrap();
    port.publish(&reports[1..], &[[7; PAGE_SIZE]], &mut Vec::new())
        .unwrap();
    assert_eq!(references(), 2);
    drop(link);
    until("the loss is seen", || !connected());
    // It comes back to a manager that stands still, and has hung up again by the time that it is answered.
    let refused = managed.host.counters().refused;
    let still = managed.host.registry();
    drop(knock(&managed));
    drop(still);
    until("the answer fails", || managed.host.counters().refused > refused);
    assert_eq!(references(), 2, "its process lives");
    let _link = knock(&managed);
    until("it is taken back", connected);
    assert_eq!(managed.host.registry().guests().count(), 1);
    assert_eq!(references(), 2);
}
