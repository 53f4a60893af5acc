//! The guest agent: PID 1 of the guest, and the workloads it runs.
//!
//! As PID 1 it brings the guest up ([`init`]) and obeys the host. Each workload is a process of its own, the same
//! binary again ([`work`]): when the kernel runs out of memory it kills a workload, not the agent.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![forbid(unsafe_code)]

mod clock;
mod init;
mod work;

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

use levy_agent::Workload;

const USAGE: &str = "usage: levy-agent run NAME [KEY=VALUE...]   run a workload here, report on stdout
       levy-agent --version";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if std::process::id() == 1 {
        return init::main();
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (id, workload) = match args[..] {
        ["--version"] => {
            let _ = writeln!(stdout(), "levy-agent {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        ["run", name, ref words @ ..] => (None, Workload::from_words(name, words.iter().copied())),
        ["work", id, json] => (id.parse().ok(), work::parse(json)),
        _ => {
            let _ = writeln!(stderr(), "{USAGE}");
            return ExitCode::from(2);
        }
    };
    match workload {
        Ok(workload) => work::main(id, &workload),
        Err(error) => {
            let _ = writeln!(stderr(), "levy-agent: {error}");
            ExitCode::from(2)
        }
    }
}
