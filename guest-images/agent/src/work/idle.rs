//! Nothing at all: what a guest costs by itself.

use levy_agent::Idle;

use super::run::{Outcome, Run};

pub(super) fn run(_: &Idle, run: &mut Run) -> Outcome {
    run.begin_work();
    run.watch(|| 0);
    Ok(run.done(0, "nothing"))
}
