//! Processes that are killed with SIGKILL while guests work: the manager, and one guest of several. Each process that
//! lives goes on, loses no byte, and shares on.

use guest_images::agent_protocol::Report;
use levy_protocol::api::DomainView;
use levy_protocol::control::Request;
use levy_tests::{Guest, Lab, Manager, Plan, SmallDisk, files_in, turn, until};

/// MiB of the pages that all guests of a test have in common, and how many pages that is.
const EQUAL_MIB: u64 = 16;
const EQUAL: u64 = EQUAL_MIB << 8;

/// Pages that are merged by the time of a kill: by far not all of those that will be.
const BEGUN: u64 = 1000;
const WELL_BEGUN: u64 = 3 * BEGUN;

/// A guest that holds pages which others have too, and rewrites and checks others all the time.
struct Busy {
    guest: Guest,
    fill: u64,
    churn: u64,
}

impl Busy {
    /// `guest`, which is ready, at work: its equal pages are there, and it rewrites others.
    fn begin(mut guest: Guest) -> Self {
        let fill = guest.run(&format!("fill mib={EQUAL_MIB} seconds=3600"));
        guest.until("equal pages", |event| match &event.report {
            Report::Stats { name, .. } if event.id == Some(fill) && name == "filled" => Some(()),
            _ => None,
        });
        let churn = guest.run("churn mib=8 rate=1000 seconds=3600");
        Self { guest, fill, churn }
    }

    /// A figure of its pages.
    fn pages(&self, state: &str) -> u64 {
        let stats = self.guest.vmm(&Request::Stats);
        stats["pages"][state].as_u64().expect("a number of pages")
    }

    fn until_pages(&self, state: &str, least: u64) {
        self.guest
            .vmm_until(&format!("{least} pages {state}"), &Request::Stats, |stats| {
                stats["pages"][state].as_u64() >= Some(least)
            });
    }

    /// Ends its work, all of which must be right to the byte, and the guest.
    fn end(mut self) {
        for run in [self.churn, self.fill] {
            let verdict = self.guest.finish(run);
            assert!(verdict.ok && verdict.ops > 0, "{:?}: {verdict:?}", self.guest);
        }
        assert_eq!(self.guest.power_off().status, 0);
    }
}

fn plan(lab: &Lab, manager: &Manager, name: &str) -> Plan {
    lab.guest(name).memory_mib(128).managed_by(manager)
}

/// Two guests at work. Neither works while the other boots, or booting takes long.
fn pair(lab: &Lab, manager: &Manager) -> [Busy; 2] {
    let mut guests = ["one", "other"].map(|name| plan(lab, manager, name).start());
    guests.iter_mut().for_each(Guest::ready);
    guests.map(Busy::begin)
}

/// What the manager says of the only domain.
fn domain(manager: &Manager) -> DomainView {
    let domains = manager.view().domains;
    *domains.values().next().expect("a domain of guests")
}

#[test]
fn guests_outlive_a_killed_manager_and_share_on_with_the_next() {
    let Some(lab) = Lab::or_skip() else { return };
    let _turn = turn();
    let mut manager = lab.manager(1024);
    let mut guests = pair(&lab, &manager);
    for busy in &guests {
        busy.until_pages("shared", BEGUN);
    }
    manager.kill();
    for busy in &mut guests {
        busy.guest.goes_on(busy.churn);
        assert!(busy.pages("shared") > 0, "common copies stay");
    }
    manager.start_again();
    until("both guests' return", || manager.connected() == 2);
    let names: Vec<_> = manager.client().guests().unwrap();
    let mut names: Vec<_> = names.into_iter().map(|guest| guest.name).collect();
    names.sort();
    assert_eq!(names, ["one", "other"]);
    for busy in &guests {
        busy.until_pages("shared", EQUAL);
    }
    until("all common pages in the pool of the new manager", || {
        u64::from(domain(&manager).pool_pages) >= EQUAL * 9 / 10
    });
    until("the end of the old pool", || {
        manager.view().spent.old_pools_bytes == 0
    });
    println!("with the second manager: {:?}", domain(&manager));
    for busy in &mut guests {
        busy.guest.goes_on(busy.churn);
    }
    guests.into_iter().for_each(Busy::end);
}

#[test]
fn a_guest_that_is_killed_while_it_merges_takes_its_references_and_nothing_else() {
    let Some(lab) = Lab::or_skip() else { return };
    let Some(disk) = SmallDisk::or_skip(192) else {
        return;
    };
    let _turn = turn();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(8 << 20).unwrap();
    let manager = lab.manager(1024);
    let mut victim = plan(&lab, &manager, "victim")
        .swapping_to(disk.path())
        .over_image(image.path(), disk.path())
        .start();
    let guests = pair(&lab, &manager);
    victim.ready();
    victim.exec(&[
        "busybox",
        "dd",
        "if=/dev/urandom",
        "of=/dev/vda",
        "bs=64k",
        "count=32",
        "conv=fsync",
    ]);
    assert!(disk.used_kib() >= 2048, "the layer is on the small disk");
    // Pages that are equal to each other, and to no other guest's.
    victim.run("fill mib=16 distinct=256 seed=99 seconds=3600");
    let stats = victim.vmm_until("merging under way", &Request::Stats, |stats| {
        stats["pages"]["merged"].as_u64() >= Some(WELL_BEGUN)
    });
    let before = domain(&manager);
    victim.kill();
    println!(
        "killed with {} pages merged; {before:?}",
        stats["pages"]["merged"]
    );
    until("one guest less", || manager.view().guests == 2);
    guests.iter().for_each(|busy| busy.until_pages("shared", EQUAL));
    // Reports of the living are behind the manager's count by a moment.
    until("references of the living only", || {
        let shared: u64 = guests.iter().map(|busy| busy.pages("shared")).sum();
        domain(&manager).references <= shared + shared / 20
    });
    let after = domain(&manager);
    println!("and then {after:?}");
    assert_eq!(after.guests, 2);
    assert!(manager.client().guest("victim").is_err(), "its name is free");
    let files = files_in(manager.dir());
    assert_eq!(files, ["api.sock", "guests.sock", "kept.json", "pages.sock"]);
    assert_eq!(disk.used_kib(), 0, "neither its layer nor its swap file is left");
    guests.into_iter().for_each(Busy::end);
}
