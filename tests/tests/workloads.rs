//! Every workload reaches a good verdict, and what it claims to have done it has done.

use levy_tests::{Guest, Lab};

/// Runs a workload to its verdict, which must be good and about some work.
fn good(guest: &mut Guest, words: &str) {
    let run = guest.run(words);
    let verdict = guest.verdict(run);
    assert!(verdict.ok, "{words}: {verdict:?}");
    assert!(
        verdict.ops > 0 || words.starts_with("idle"),
        "{words}: {verdict:?}"
    );
}

#[test]
fn memory_workloads_check_every_byte() {
    let Some(lab) = Lab::or_skip() else { return };
    let mut guest = lab.guest("memory").cpus(2).start();
    guest.ready();
    for words in [
        "idle seconds=1",
        "toucher mib=16 seconds=2",
        "fill mib=32 distinct=64 zero_percent=25 seconds=1",
        "churn mib=16 threads=2 seconds=2",
        "file mib=8 hold=1 seconds=2",
    ] {
        good(&mut guest, words);
    }
    assert_eq!(guest.power_off().status, 0);
}

#[test]
fn servers_on_the_debian_disk_serve() {
    let Some(lab) = Lab::with_disk_or_skip() else {
        return;
    };
    let mut guest = lab.guest("servers").cpus(2).memory_mib(512).on_disk().start();
    guest.ready();
    for words in [
        "redis mib=4 seconds=3",
        "nginx files=8 seconds=3",
        "pgbench seconds=3",
        "dbench seconds=3",
    ] {
        good(&mut guest, words);
    }
    assert_eq!(guest.power_off().status, 0);
}
