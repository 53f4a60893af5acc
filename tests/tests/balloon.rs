//! The balloon of real guests: it moves, stops where a guest gives no more, survives its driver, and never costs a
//! byte of what a guest has in use.

use std::time::Instant;

use guest_images::Flavour;
use guest_images::agent_protocol::{Action, ModuleChange, Report};
use levy_protocol::control::Request;
use levy_tests::{Guest, Lab, PATIENCE, turn};
use serde_json::Value;

/// MiB of the file that comes and goes.
const FILE_MIB: u64 = 150;

/// What changes nothing and tells the balloon's figures.
const LOOK: Request = Request::Balloon {
    amount_mib: None,
    deflate_on_oom: None,
    stats_polling_interval_s: None,
};

fn ask_for(guest: &Guest, mib: u64) {
    guest.vmm(&Request::Balloon {
        amount_mib: Some(mib),
        deflate_on_oom: None,
        stats_polling_interval_s: None,
    });
}

/// Asks for a balloon of `mib` MiB and waits until it has exactly that size.
fn settle(guest: &Guest, mib: u64) -> Value {
    ask_for(guest, mib);
    settled(guest, mib)
}

fn settled(guest: &Guest, mib: u64) -> Value {
    guest.vmm_until(&format!("a balloon of {mib} MiB"), &LOOK, |balloon| {
        balloon["ballooned_pages"] == mib * 256 && balloon["controller"]["state"] == "settled"
    })
}

fn state(balloon: &Value) -> &str {
    balloon["controller"]["state"].as_str().unwrap_or_default()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// MiB of guest memory that the host has present.
fn resident_mib(guest: &Guest) -> u64 {
    number(&guest.vmm(&Request::Stats)["memory"]["guest_rss_kib"]) >> 10
}

/// Every statistic of this kernel is known by name, and there are `tags` of them.
fn statistics_have_names(guest: &Guest, tags: usize) {
    guest.vmm_until("statistics", &LOOK, |balloon| balloon["statistics"].is_object());
    let statistics = guest.vmm(&Request::BalloonStatistics);
    let fields = statistics.as_object().unwrap();
    // Besides them: sizes by target and claim in pages and MiB, and the age.
    assert_eq!(fields.len(), tags + 5, "{fields:?}");
    let total = number(&statistics["total_memory"]) >> 20;
    assert!((400..512).contains(&total), "{total} MiB in all");
    assert_eq!(guest.vmm(&LOOK)["unknown_statistics"], 0);
}

/// A goal beyond everything the guest has ends above the floor: no process is killed.
fn the_floor_holds(guest: &mut Guest) {
    ask_for(guest, 512);
    guest.vmm_until("most of the memory", &LOOK, |balloon| {
        number(&balloon["ballooned_mib"]) >= 300 || state(balloon) == "relieving"
    });
    guest.exec(&["busybox", "true"]);
    settle(guest, 0);
}

/// Unloading the driver empties the balloon and is told; the next driver goes on towards the goal.
fn a_driver_goes_and_comes(guest: &mut Guest) {
    let change = |change| Action::Module {
        name: "virtio_balloon".to_owned(),
        change,
    };
    let total = |guest: &mut Guest| guest.ask(Action::Meminfo)["MemTotal"].as_u64();
    let before = total(guest);
    settle(guest, 200);
    guest.ask(change(ModuleChange::Remove));
    let balloon = guest.vmm_until("the driver's end", &LOOK, |balloon| state(balloon) == "absent");
    assert_eq!(balloon["unresponsive"], true);
    assert_eq!(
        (&balloon["ballooned_pages"], &balloon["target_mib"]),
        (&0.into(), &0.into())
    );
    assert_eq!(total(guest), before, "memory is whole");
    guest.ask(change(ModuleChange::Insert));
    assert_eq!(settled(guest, 200)["unresponsive"], false);
}

/// A guest that does not run owes what it was asked for, and is marked.
fn a_silent_driver_is_marked(guest: &Guest) {
    guest.vmm(&Request::Pause);
    ask_for(guest, 50);
    guest.vmm_until("silence to be noticed", &LOOK, |balloon| {
        state(balloon) == "unresponsive" && balloon["unresponsive"] == true
    });
    guest.vmm(&Request::Resume);
    assert_eq!(settled(guest, 50)["unresponsive"], false);
}

/// A deleted file is back on the host although the host did not ask for it, but for the parts that share a block of 2
/// MiB with something else: the guest's kernel reports whole blocks.
fn a_deleted_file_comes_back_by_itself(guest: &mut Guest) {
    let named = |name: &'static str| {
        move |event: &guest_images::agent_protocol::Event| match &event.report {
            Report::Stats { name: what, .. } if what == name => Some(()),
            _ => None,
        }
    };
    // Held until it was looked at, then checked and deleted, and not written again.
    let run = guest.run(&format!("file mib={FILE_MIB} hold=3600 seconds=3600"));
    guest.until("the file", named("written"));
    let with = resident_mib(guest);
    let verdict = guest.finish(run);
    assert!(verdict.ok, "{verdict:?}");
    guest.until("its end", named("deleted"));
    let deleted = Instant::now();
    guest.vmm_until("the file's memory to come back", &Request::Stats, |stats| {
        (number(&stats["memory"]["guest_rss_kib"]) >> 10) + FILE_MIB * 90 / 100 <= with
    });
    println!(
        "{FILE_MIB} MiB came back {:.1} s after the file's end",
        deleted.elapsed().as_secs_f64()
    );
    let balloon = guest.vmm(&LOOK);
    assert_eq!(balloon["ballooned_pages"], 0);
    assert_eq!(balloon["release_failed_pages"], 0);
}

fn a_balloons_life(lab: &Lab, tags: usize) {
    let plan = lab.guest("balloon").memory_mib(512);
    let mut guest = plan.start();
    guest.ready();
    statistics_have_names(&guest, tags);
    a_deleted_file_comes_back_by_itself(&mut guest);
    the_floor_holds(&mut guest);
    a_driver_goes_and_comes(&mut guest);
    let resident = resident_mib(&guest);
    assert!(resident <= 512 - 200, "{resident} MiB beside a balloon of 200");
    a_silent_driver_is_marked(&guest);
    settle(&guest, 200);
    // A restart with a full balloon neither hangs nor oopses.
    guest.command(Action::Reboot);
    let ended = guest.end();
    assert_eq!(ended.status, 3, "{ended:?}");
}

/// Without statistics nothing shows the floor: inflation stops where the guest gives no more, and says where.
fn stops_where_the_guest_gives_no_more(lab: &Lab) {
    let plan = lab
        .guest("full")
        .args(["--balloon", "stats_polling_interval=0s,deflate_on_oom=on"]);
    let mut guest = plan.start();
    guest.ready();
    ask_for(&guest, 256);
    let balloon = guest.vmm_until("an end of inflation", &LOOK, |balloon| {
        state(balloon) == "stopped"
    });
    let reached = number(&balloon["controller"]["reached_mib"]);
    assert!((100..250).contains(&reached), "{balloon}");
    // What it needs afterwards it takes back rather than kill.
    let run = guest.run("churn mib=64 seconds=1");
    assert!(guest.verdict(run).ok);
    assert!(number(&guest.vmm(&LOOK)["deflated_pages"]) > 0);
    settle(&guest, 0);
    let run = guest.run("churn mib=128 seconds=1");
    assert!(guest.verdict(run).ok, "memory is whole");
    let ended = guest.power_off();
    assert_eq!(ended.status, 0, "{ended:?}");
}

#[test]
fn a_balloon_lives_through_floor_file_driver_silence_and_restart() {
    let Some(lab) = Lab::or_skip() else { return };
    let _turn = turn();
    a_balloons_life(&lab, 16);
}

#[test]
fn a_balloon_without_statistics_stops_where_the_guest_gives_no_more() {
    let Some(lab) = Lab::or_skip() else { return };
    let _turn = turn();
    stops_where_the_guest_gives_no_more(&lab);
}

#[test]
#[ignore = "a second kernel"]
fn an_older_kernel_has_a_balloon_too() {
    let lab = Lab::or_skip().and_then(|lab| lab.with_kernel_or_skip(Flavour::Cloud61));
    let Some(lab) = lab else { return };
    let _turn = turn();
    a_balloons_life(&lab, 10);
    stops_where_the_guest_gives_no_more(&lab);
}

#[test]
fn a_balloon_that_may_not_deflate_ends_in_a_panic_that_is_told() {
    let Some(lab) = Lab::or_skip() else { return };
    let _turn = turn();
    // Such a guest has nothing to do when it runs out of memory but to kill; this one is told not to do that either.
    let plan = lab
        .guest("stiff")
        .kernel_words("sysctl.vm.panic_on_oom=1")
        .args(["--balloon", "stats_polling_interval=0s,deflate_on_oom=off"]);
    let mut guest = plan.in_trouble().start();
    guest.ready();
    ask_for(&guest, 256);
    let until = Instant::now() + PATIENCE;
    // The kernel may run out by itself before the controller sees that there is no progress.
    while let Ok(balloon) = guest.try_vmm(&LOOK) {
        assert!(Instant::now() < until, "inflation does not end: {balloon}");
        if state(&balloon) == "stopped" {
            assert!(number(&balloon["controller"]["reached_mib"]) >= 100, "{balloon}");
            guest.run("churn mib=128 seconds=60");
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let ended = guest.end();
    assert_eq!(ended.status, 4, "{ended:?}");
    assert!(
        ended.message.contains("memory"),
        "the kernel's words are told: {ended:?}"
    );
}

/// Kernel option of the managed guests: such a kernel takes it for granted that pages which it reported come back as
/// zeros and does not clear them again, so that programs see what the host returned.
const TRUSTING: &str = "init_on_free=1";

#[test]
fn merged_pages_that_go_into_the_balloon_come_back_as_zeros() {
    let Some(lab) = Lab::or_skip() else { return };
    let _turn = turn();
    let manager = lab.manager(4096);
    let start = |name: &str| {
        let plan = lab.guest(name).kernel_words(TRUSTING);
        let mut guest = plan.managed_by(&manager).start();
        guest.ready();
        guest
    };
    let mut guests = [start("one"), start("other")];
    let pages = |guest: &Guest| guest.vmm(&Request::Stats)["pages"].clone();
    // Equal pages in both, which are let go of again and again.
    let runs = guests.each_mut().map(|guest| {
        [
            "fill mib=48 distinct=64 zero_percent=20 check_every=1 seconds=3600",
            "churn mib=24 rate=2000 seconds=3600",
            "file mib=32 hold=1 seconds=3600",
        ]
        .map(|words| guest.run(words))
    });
    for (guest, [fill, ..]) in guests.iter_mut().zip(runs) {
        guest.until("equal pages", |event| match &event.report {
            Report::Stats { name, .. } if event.id == Some(fill) && name == "filled" => Some(()),
            _ => None,
        });
    }
    for guest in &guests {
        let request = Request::Stats;
        guest.vmm_until("merged pages", &request, |stats| {
            number(&stats["pages"]["merged"]) > 1000
        });
    }
    for mib in [40, 0, 60, 0] {
        for guest in &guests {
            ask_for(guest, mib);
        }
        for guest in &guests {
            settled(guest, mib);
        }
    }
    for (guest, runs) in guests.iter_mut().zip(runs) {
        // The file comes and goes until pages of it were reported.
        guest.vmm_until("reported pages", &LOOK, |balloon| {
            number(&balloon["reported_pages"]) > 0
        });
        for run in runs {
            let verdict = guest.finish(run);
            assert!(verdict.ok, "{verdict:?}");
        }
        let balloon = guest.vmm(&LOOK);
        println!(
            "inflated {}, reported {}, merged {}",
            balloon["inflated_pages"],
            balloon["reported_pages"],
            pages(guest)["merged"]
        );
        assert!(number(&balloon["inflated_pages"]) >= 100 * 256 && number(&balloon["reported_pages"]) > 0);
        assert_eq!(balloon["release_failed_pages"], 0);
        // Everything that was given up holds zeros for programs, and holds what they write.
        let run = guest.run("churn mib=96 seconds=1");
        let verdict = guest.verdict(run);
        assert!(verdict.ok, "{verdict:?}");
    }
    for guest in guests {
        assert_eq!(guest.power_off().status, 0);
    }
}
