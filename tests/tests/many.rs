//! Many guests at once on one host, from one disk image.

use levy_tests::{Guest, Lab};

/// Workloads that differ, so that guests disturb each other in all ways.
const WORK: [&str; 8] = [
    "churn mib=32 seconds=5",
    "fill mib=48 distinct=16 seconds=3",
    "toucher mib=24 seconds=5",
    "redis mib=4 seconds=5",
    "nginx files=8 seconds=5",
    "file mib=16 hold=1 dir=/var/tmp seconds=5",
    "churn mib=16 threads=2 seconds=5",
    "pgbench seconds=5",
];

#[test]
fn eight_guests_at_once_all_reach_their_verdict() {
    let Some(lab) = Lab::with_disk_or_skip() else {
        return;
    };
    let mut guests: Vec<(&str, Guest)> = WORK
        .iter()
        .enumerate()
        .map(|(at, words)| (*words, lab.guest(&format!("many-{at}")).on_disk().start()))
        .collect();
    for (_, guest) in &mut guests {
        guest.ready();
    }
    let runs: Vec<_> = guests.iter_mut().map(|(words, guest)| guest.run(words)).collect();
    for ((words, guest), run) in guests.iter_mut().zip(runs) {
        let verdict = guest.verdict(run);
        assert!(verdict.ok, "{words}: {verdict:?}");
    }
    for (words, guest) in guests {
        assert_eq!(guest.power_off().status, 0, "{words}");
    }
}
