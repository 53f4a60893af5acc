//! A guest's process without a guest, or a manager.

use std::process::ExitCode;

fn main() -> ExitCode {
    simulated::Command::run_arguments()
}
