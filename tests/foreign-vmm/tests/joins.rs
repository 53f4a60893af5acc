//! The VMM joins a `levy host` beside one of Levy's own guests: it shares, is sampled and limited, and leaves.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use levy_protocol::api::{GuestView, HostChange, Phase};
use simulated::{Guest, GuestOptions, Manager, until};

const MIB: u64 = 1 << 20;

/// What is missing once the budget was cut.
const CUT: u64 = 24 * MIB;

/// Above its limit by so much a process does nothing yet, and the kernel counts in batches.
const COARSE: u64 = 2 * MIB;

/// The VMM's process. Killed when dropped.
struct Foreign(Child);

impl Foreign {
    fn start(dir: &Path, image: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_foreign-vmm"))
            .args([dir, "foreign".as_ref(), "simulated".as_ref(), image])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    /// Waits for its end, and returns what it said.
    fn ends_well(mut self) -> String {
        let mut said = String::new();
        let mut output = self.0.stdout.take().unwrap();
        output.read_to_string(&mut said).unwrap();
        assert!(self.0.wait().unwrap().success(), "{said}");
        said
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The example of this package that is the other side: cargo builds it with the tests.
fn levy() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.ancestors().nth(2).unwrap().join("examples/levy");
    assert!(
        program.is_file(),
        "run `cargo test -p foreign-vmm`, which builds {program:?}"
    );
    program
}

fn view(manager: &Manager) -> GuestView {
    manager.client().guest("foreign").unwrap()
}

fn names(manager: &Manager) -> Vec<String> {
    let guests = manager.client().guests().unwrap();
    guests.into_iter().map(|guest| guest.name).collect()
}

/// Waits for so many reports more, of both guests together. The limit holds all the time.
fn until_reports(manager: &Manager, more: u64) {
    let reports = || manager.view().doors.reports;
    let enough = reports() + more;
    until("reports", || {
        let guest = view(manager);
        assert!(is_within(&guest), "{guest:?}");
        reports() >= enough
    });
}

/// Whether it holds no more than it was told to.
fn is_within(guest: &GuestView) -> bool {
    guest
        .limit_bytes
        .is_some_and(|limit| guest.held_bytes <= limit + COARSE)
}

#[test]
fn a_vmm_that_is_not_levy_shares_is_sampled_and_limited_and_leaves() {
    if let Err(reason) = ring3::available() {
        return ring3::skip("foreign-vmm", &reason);
    }
    let levy = levy();
    let manager = Manager::start_with(&levy, 512, &["--sample", "2s", "--rebalance", "2s"]);
    // No two pages of this guest are alike: whatever it shares, the other one has too.
    let options = GuestOptions::new("own").all_different().rate(0);
    let image = manager.dir().join("image");
    std::fs::write(&image, options.contents()).unwrap();
    let mut own = Guest::start(&levy, manager.dir(), options);
    let foreign = Foreign::start(manager.dir(), &image);
    until("both guests' connection", || manager.connected() == 2);
    own.until("sharing", |status| status.shared > 4000);
    let shared = own.status().shared * 4096;
    until("the other end of it", || {
        view(&manager).memory.shared_bytes >= shared
    });
    is_sampled(&manager);
    is_limited(&manager);
    is_paused(&manager);
    manager.client().direct("foreign", "stop").unwrap();
    print!("foreign: {}", foreign.ends_well());
    until("its absence", || names(&manager) == ["own"]);
    assert_eq!(manager.view().domains["simulated"].guests, 1);
    assert_eq!(manager.view().doors.cut_offs, 0);
    own.assert_right();
}

/// A part of its pages is idle, which only a sample shows.
fn is_sampled(manager: &Manager) {
    until("all of its memory in use", || {
        view(manager).memory.private_bytes > 34 * MIB
    });
    until("samples", || {
        let activity = view(manager).activity;
        activity.fraction < 0.8 && activity.high - activity.low < 0.5
    });
    let GuestView { activity, memory, .. } = view(manager);
    println!(
        "of {} MiB {} are shared and {} private, of which {:.0} to {:.0} % are in use",
        view(manager).limits.max_bytes / MIB,
        memory.shared_bytes / MIB,
        memory.private_bytes / MIB,
        activity.low * 100.0,
        activity.high * 100.0
    );
}

/// It stands still, as its own reports say: one that ran on would be shown as running after the next.
fn is_paused(manager: &Manager) {
    manager.client().direct("foreign", "pause").unwrap();
    until_reports(manager, 6);
    until("a pause", || view(manager).phase == Phase::Paused);
    manager.client().direct("foreign", "resume").unwrap();
    until_reports(manager, 6);
    until("an end of the pause", || view(manager).phase == Phase::Running);
}

/// The budget is cut: it gives pages up by all ways, comes down to its limit, and stays there.
fn is_limited(manager: &Manager) {
    let spent = manager.view().spent;
    let used = spent.guests_bytes + spent.pools_bytes + spent.manager_bytes;
    let before = view(manager).held_bytes;
    let change = HostChange {
        budget_bytes: Some(used - CUT),
        ..HostChange::default()
    };
    manager.client().change_host(&change).unwrap();
    let mut ballooned = 0;
    until("a guest within its limit", || {
        let guest = view(manager);
        ballooned = ballooned.max(guest.memory.ballooned_bytes);
        let stored = guest.memory.compressed_bytes + guest.memory.swapped_bytes;
        let is_free = manager.view().free_bytes.is_some_and(|free| free >= 0);
        is_free && ballooned > 0 && stored > 0 && guest.held_bytes < before && is_within(&guest)
    });
    until_reports(manager, 20);
    let guest = view(manager);
    let kib = |bytes: u64| bytes >> 10;
    println!(
        "it held {} KiB, and holds {} of {} now: {} in the balloon, {} compressed, {} swapped",
        kib(before),
        kib(guest.held_bytes),
        kib(guest.limit_bytes.unwrap_or_default()),
        kib(guest.memory.ballooned_bytes),
        kib(guest.memory.compressed_bytes),
        kib(guest.memory.swapped_bytes)
    );
}
