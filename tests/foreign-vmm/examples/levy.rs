//! The other side of this package's tests: `levy host`, or one of Levy's simulated guests.

use std::process::ExitCode;

fn main() -> ExitCode {
    simulated::Command::run_arguments()
}
