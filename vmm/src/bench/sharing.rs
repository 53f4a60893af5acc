//! The paper's figure 4: how much do 1 to 10 equal guests share?

use std::time::Duration;

use super::{Figure, Outcome, Report, Scene, Stage, StageError};

/// Memory for everything: nothing but sharing shall be necessary.
const BUDGET: u64 = 8 << 30;

/// Runs the bench.
///
/// # Errors
/// When a guest does not do its work, or its data was wrong.
pub fn sharing(scene: &Scene) -> Result<Outcome, StageError> {
    let mut stage = Stage::open(scene, scene.settings(BUDGET))?;
    let mut report = Report::new("sharing");
    let count = if scene.quick { 2 } else { 10 };
    for number in 1..=count {
        let guest = stage.start_usual(&format!("equal-{number}"))?;
        stage.ready(&[guest])?;
        let run = stage.run(guest, &format!("churn mib=16 seconds=5 seed={number}"))?;
        stage.verdict(run)?;
        stage.pass(Duration::from_secs(10))?;
    }
    report.set("samples", stage.samples());
    Ok(Outcome {
        report,
        table: String::new(),
        figure: Figure::default(),
    })
}
