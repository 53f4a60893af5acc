//! Every target runs some inputs, and the runner notices a broken invariant.

use fuzz::{Runner, targets};

#[test]
fn every_target_survives_five_hundred_inputs() {
    for target in targets::ALL {
        let artifacts = std::env::temp_dir();
        let runner = Runner {
            runs: 500,
            jobs: 2,
            seed: 7,
            artifacts,
        };
        let outcome = runner.run(target, |_, _| {}).unwrap();
        assert_eq!(outcome.executions, 500, "{}", target.name);
        assert!(
            outcome.signatures > 10,
            "{} does nothing: {outcome:?}",
            target.name
        );
    }
}
