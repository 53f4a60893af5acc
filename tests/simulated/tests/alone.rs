//! Guests whose manager is gone stay within what it last allowed them, go on, and come back to the next one.

use std::path::Path;

use simulated::{Guest, GuestOptions, Manager, until};

const MIB: u64 = 1 << 20;

/// What all guests may have, and a process's own tables, which grow and shrink.
const BUDGET_MIB: u64 = 100;
const TOLERANCE: u64 = 2 * MIB;

/// Visits of each guest's writers after which a guest without a limit would have far more pages than before.
const VISITS: u64 = 4000;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_simulated"))
}

#[test]
fn without_a_manager_the_budget_holds_on() {
    let mut manager = Manager::start(program(), BUDGET_MIB);
    let mut guests: Vec<_> = (1..=4)
        .map(|seed| {
            let options = GuestOptions::new(&format!("g{seed}")).mib(40).seed(seed);
            Guest::start(program(), manager.dir(), options.all_different().rate(1000))
        })
        .collect();
    let all = |guests: &[Guest]| guests.iter().map(Guest::held).sum::<u64>();
    until("four guests of 40 MiB in 100 MiB", || {
        all(&guests) <= BUDGET_MIB * MIB
    });
    manager.kill();
    let writes = |guests: &[Guest]| {
        guests
            .iter()
            .map(|guest| guest.status().writes)
            .collect::<Vec<_>>()
    };
    let (before, mut most) = (writes(&guests), 0);
    until("work without a manager", || {
        most = most.max(all(&guests));
        let now = writes(&guests);
        now.iter()
            .zip(&before)
            .all(|(now, before)| now - before >= VISITS)
    });
    println!(
        "at most {:.1} of {BUDGET_MIB} MiB held without a manager",
        most as f64 / MIB as f64
    );
    assert!(most <= BUDGET_MIB * MIB + TOLERANCE, "{most} bytes held");
    manager.start_again();
    until("the guests' return", || manager.connected() == guests.len());
    guests.iter_mut().for_each(Guest::assert_right);
}
