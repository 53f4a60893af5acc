//! Too little memory, too little disk: every guest keeps its bytes, its minimum and its life, and the host is told what
//! is wrong.

use std::time::{Duration, Instant};

use guest_images::agent_protocol::{Action, ModuleChange, Report};
use levy_protocol::api::{GuestView, HostChange};
use levy_protocol::control::Request;
use levy_tests::{Guest, Lab, Manager, PATIENCE, Plan, SmallDisk, turn, until};

const MIB: u64 = 1 << 20;

/// MiB of memory that does not compress, in each guest.
const FILL_MIB: u64 = 96;

/// What each guest is guaranteed, MiB.
const MIN_MIB: u64 = 32;

/// How long a shortage is watched.
const WATCHED: Duration = Duration::from_secs(20);

/// A guest of 192 MiB that is guaranteed [`MIN_MIB`].
fn plan(lab: &Lab, manager: &Manager, name: &str) -> Plan {
    lab.guest(name)
        .memory_mib(192)
        .min_mib(MIN_MIB)
        .managed_by(manager)
}

/// Has `guest` fill memory with bytes that do not compress; the run's number.
fn fill(guest: &mut Guest, seed: u64) -> u64 {
    let run = guest.run(&format!("fill mib={FILL_MIB} seed={seed} seconds=3600"));
    guest.until("full memory", |event| match &event.report {
        Report::Stats { name, .. } if event.id == Some(run) && name == "filled" => Some(()),
        _ => None,
    });
    run
}

/// Ends run number `run`, all of whose bytes must be right.
fn finish(guest: &mut Guest, run: u64) {
    let verdict = guest.finish(run);
    assert!(verdict.ok && verdict.ops > 0, "{guest:?}: {verdict:?}");
}

fn unload_balloon(guest: &mut Guest, manager: &Manager, name: &str) {
    guest.ask(Action::Module {
        name: "virtio_balloon".into(),
        change: ModuleChange::Remove,
    });
    until("the manager's hearing of it", || {
        view(manager, name)
            .balloon
            .is_some_and(|balloon| !balloon.responsive)
    });
}

fn view(manager: &Manager, name: &str) -> GuestView {
    manager.client().guest(name).expect("the manager knows the guest")
}

/// Gives the manager another budget, in MiB.
fn set_budget(manager: &Manager, mib: u64) {
    let change = HostChange {
        budget_bytes: Some(mib * MIB),
        ..HostChange::default()
    };
    manager
        .client()
        .change_host(&change)
        .expect("a budget that holds what was promised");
}

/// Puts another manager in the place of this one, with a budget that this one would refuse: the guests' swap does not
/// back it.
fn replace_with_budget(manager: &mut Manager, mib: u64) {
    let (budget, guests) = (format!("{mib}M"), manager.connected());
    manager.start_again_as(&["--budget", &budget, "--rebalance", "1s"]);
    until("all guests' return", || manager.connected() == guests);
}

/// What everything takes, in MiB.
fn used_mib(manager: &Manager) -> u64 {
    let spent = manager.view().spent;
    (spent.guests_bytes + spent.pools_bytes + spent.manager_bytes) / MIB
}

/// Waits until guest `name` and the host are as `wanted`, and says how they were at last when that does not come about.
fn until_seen(manager: &Manager, name: &str, wanted: impl Fn(&GuestView, i64) -> bool) -> GuestView {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (seen, free) = (view(manager, name), manager.view().free_bytes.unwrap_or(i64::MIN));
        if wanted(&seen, free) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{free} free; {seen:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Whether a guest lacks something that was promised to it: it has less than its minimum, and some of the rest was taken
/// away rather than never wanted.
fn is_short(guest: &GuestView) -> bool {
    let (memory, min) = (guest.memory, guest.limits.min_bytes);
    let has = memory.private_bytes + memory.shared_bytes + memory.zero_bytes + memory.store_bytes;
    let taken = memory.ballooned_bytes + memory.compressed_bytes + memory.swapped_bytes;
    // Pages may be on their way while they are counted.
    has + min / 50 < min.min(has + taken)
}

/// Second after second: every guest keeps its minimum and its process answers.
fn watch(manager: &Manager, guests: &[(&str, &Guest)]) {
    let until = Instant::now() + WATCHED;
    while Instant::now() < until {
        for (name, guest) in guests {
            let view = view(manager, name);
            assert!(!is_short(&view), "{name} is below its minimum: {view:?}");
            guest.vmm(&Request::Status);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    for (name, _) in guests {
        let seen = view(manager, name);
        println!(
            "{name}: {:?}, {} held, reported {:.1} s ago",
            seen.memory, seen.held_bytes, seen.report_age_seconds
        );
    }
    println!("{:?} bytes free", manager.view().free_bytes);
}

/// Lines of the VMM's log with `words` in them: some, but not one for every attempt.
fn told(guest: &Guest, words: &str) {
    let log = guest.log();
    let lines = log.lines().filter(|line| line.contains(words)).count();
    assert!(
        (1..=5).contains(&lines),
        "{lines} times {words:?}: {}",
        &log[log.len().saturating_sub(2000)..]
    );
}

#[test]
#[ignore = "minutes on an emulated host"]
fn a_guest_without_its_balloon_driver_is_compressed_and_swapped_instead() {
    let Some(lab) = Lab::or_skip() else { return };
    let _turn = turn();
    let manager = lab.manager(1024);
    let [mut deaf, mut other] = ["deaf", "other"].map(|name| plan(&lab, &manager, name).start());
    [&mut deaf, &mut other].into_iter().for_each(Guest::ready);
    unload_balloon(&mut deaf, &manager, "deaf");
    let (held, churn) = (fill(&mut deaf, 1), other.run("churn mib=8 rate=500 seconds=3600"));
    set_budget(&manager, used_mib(&manager) - 48);
    let seen = until_seen(&manager, "deaf", |deaf, free| {
        free >= 0 && deaf.memory.compressed_bytes > 0 && deaf.memory.swapped_bytes > 0
    });
    println!("{:?}, {:?}", seen.memory, seen.balloon);
    assert_eq!(seen.memory.ballooned_bytes, 0);
    other.goes_on(churn);
    watch(&manager, &[("deaf", &deaf), ("other", &other)]);
    set_budget(&manager, 1024);
    deaf.ask(Action::Module {
        name: "virtio_balloon".into(),
        change: ModuleChange::Insert,
    });
    until("the driver's return", || {
        view(&manager, "deaf")
            .balloon
            .is_some_and(|balloon| balloon.responsive)
    });
    finish(&mut deaf, held);
    finish(&mut other, churn);
    assert_eq!((deaf.power_off().status, other.power_off().status), (0, 0));
}

#[test]
#[ignore = "minutes on an emulated host"]
fn guests_that_fit_nowhere_keep_their_bytes_and_their_minimums() {
    let Some(lab) = Lab::or_skip() else { return };
    // Swap files grow by 1 MiB at a time: both guests' files together are all of it.
    let Some(swap) = SmallDisk::or_skip(400) else {
        return;
    };
    let _turn = turn();
    let mut manager = lab.manager(1024);
    let mut guests = ["one", "other"].map(|name| plan(&lab, &manager, name).swapping_to(swap.path()).start());
    guests.iter_mut().for_each(Guest::ready);
    let [one, other] = &mut guests;
    let runs = [fill(one, 1), fill(other, 2)];
    let used = used_mib(&manager);
    swap.resize(32);
    replace_with_budget(&mut manager, used - 100);
    until("a full disk", || swap.used_kib() > 31 << 10);
    println!("{used} MiB used, budget {} MiB", used - 100);
    watch(&manager, &[("one", one), ("other", other)]);
    set_budget(&manager, 1024);
    for (guest, run) in guests.iter_mut().zip(runs) {
        told(guest, "no room for the swap file");
        finish(guest, run);
    }
    for guest in guests {
        assert_eq!(guest.power_off().status, 0);
    }
    assert_eq!(swap.used_kib(), 0, "swap files go with their guests");
}

#[test]
#[ignore = "minutes on an emulated host"]
fn a_guest_that_can_neither_be_ballooned_nor_swapped_waits_and_says_why() {
    let Some(lab) = Lab::or_skip() else { return };
    let Some(swap) = SmallDisk::or_skip(200) else {
        return;
    };
    // Not even the first part of a swap file fits.
    std::fs::write(swap.path().join("ballast"), vec![1; 768 << 10]).unwrap();
    let ballast_kib = swap.used_kib();
    let _turn = turn();
    let mut manager = lab.manager(1024);
    let mut stuck = plan(&lab, &manager, "stuck").swapping_to(swap.path()).start();
    let mut other = plan(&lab, &manager, "other").start();
    [&mut stuck, &mut other].into_iter().for_each(Guest::ready);
    unload_balloon(&mut stuck, &manager, "stuck");
    let (held, churn) = (
        fill(&mut stuck, 1),
        other.run("churn mib=8 rate=500 seconds=3600"),
    );
    swap.resize(1);
    let budget = used_mib(&manager) - 48;
    replace_with_budget(&mut manager, budget);
    until("its own word for it", || {
        stuck.log().contains("no room for the swap file")
    });
    watch(&manager, &[("stuck", &stuck), ("other", &other)]);
    assert_eq!(view(&manager, "stuck").memory.swapped_bytes, 0);
    other.goes_on(churn);
    set_budget(&manager, 1024);
    told(&stuck, "no room for the swap file");
    finish(&mut stuck, held);
    finish(&mut other, churn);
    assert_eq!((stuck.power_off().status, other.power_off().status), (0, 0));
    assert_eq!(swap.used_kib(), ballast_kib);
}

/// What a shell in the guest runs.
fn shell(guest: &mut Guest, words: &str) -> String {
    guest.exec(&["sh", "-c", words])
}

#[test]
#[ignore = "minutes on an emulated host"]
fn a_full_disk_under_a_layer_is_an_error_for_its_guest_and_for_nobody_else() {
    let Some(lab) = Lab::or_skip() else { return };
    let Some(layers) = SmallDisk::or_skip(24) else {
        return;
    };
    let _turn = turn();
    let ballast = layers.path().join("ballast");
    std::fs::write(&ballast, vec![1; 16 << 20]).unwrap();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(64 << 20).unwrap();
    let manager = lab.manager(1024);
    // The guest's kernel complains about its disk.
    let plan_writer = plan(&lab, &manager, "writer").in_trouble();
    let mut writer = plan_writer.over_image(image.path(), layers.path()).start();
    let mut other = plan(&lab, &manager, "other").start();
    [&mut writer, &mut other].into_iter().for_each(Guest::ready);
    let churn = other.run("churn mib=8 rate=500 seconds=3600");
    let sum = |guest: &mut Guest| {
        let words =
            "sync; echo 3 >/proc/sys/vm/drop_caches; busybox dd if=/dev/vda bs=64k count=16 | busybox md5sum";
        shell(guest, words)
    };
    shell(
        &mut writer,
        "busybox dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync",
    );
    let known = sum(&mut writer);

    let more = [
        "busybox",
        "dd",
        "if=/dev/urandom",
        "of=/dev/vda",
        "bs=64k",
        "seek=64",
        "count=320",
        "conv=fsync",
    ];
    let failed = writer.try_exec(&more);
    assert_ne!(failed["status"], 0, "20 MiB in 8: {failed:?}");
    assert!(
        failed["stderr"].as_str().unwrap().contains("Input/output error"),
        "{failed:?}"
    );
    told(&writer, "gets an I/O error: No space left on device");
    assert_eq!(sum(&mut writer), known, "what was written before is as it was");
    let churning = writer.run("churn mib=16 seconds=2");
    assert!(writer.verdict(churning).ok);
    other.goes_on(churn);

    // Where there is room again, the guest writes on.
    std::fs::remove_file(&ballast).unwrap();
    shell(&mut writer, &more.join(" "));
    assert_eq!(sum(&mut writer), known);
    finish(&mut other, churn);
    assert_eq!((writer.power_off().status, other.power_off().status), (0, 0));
    assert_eq!(layers.used_kib(), 0, "a layer outlived its guest");
    let zeros = std::fs::read(image.path()).unwrap();
    assert!(zeros.iter().all(|&byte| byte == 0), "the image was written to");
}
