//! dbench: the file server load of its recorded client file.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use levy_agent::Dbench;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::run::{Outcome, Run};

/// Where Debian's package keeps the recorded load.
const LOADFILES: &[&str] = &["/usr/share/dbench/client.txt", "/usr/share/dbench/client.txt.gz"];

pub(super) fn run(parameters: &Dbench, run: &mut Run) -> Outcome {
    let load = LOADFILES.iter().find(|path| Path::new(path).exists());
    let load = load.ok_or("dbench's load file client.txt is missing: is dbench installed?")?;
    let dir = Path::new(&parameters.dir).join(format!("levy-dbench.{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
    let outcome = bench(parameters, load, &dir, run);
    let _ = std::fs::remove_dir_all(&dir);
    outcome
}

fn bench(parameters: &Dbench, load: &str, dir: &Path, run: &mut Run) -> Outcome {
    let going = run.begin_work();
    let mut command = Command::new("dbench");
    command
        .args(["-c", load, "-t", &parameters.seconds.to_string(), "-D"])
        .arg(dir);
    command.arg(parameters.clients.to_string());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| format!("cannot start dbench: {error}"))?;
    let output = child.stdout.take().ok_or("dbench has no output")?;
    let (mut ops, mut result, mut last) = (0, None, String::new());
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if let Some(operations) = operations(&line) {
            ops = operations;
            run.tick(ops);
        }
        if line.starts_with("Throughput") {
            result = Some(line.clone());
        }
        if going.stopped() {
            // Its clients would go on without it, and hold its output open.
            for client in clients(child.id()) {
                let _ = kill(client, Signal::SIGKILL);
            }
            let _ = child.kill();
            break;
        }
        last = line;
    }
    let status = child.wait().map_err(|error| format!("dbench is lost: {error}"))?;
    let mut done = run.done(ops, "operations");
    match result {
        Some(result) if status.success() => done.detail = result,
        _ if going.stopped() => done.detail = "stopped".to_owned(),
        _ => return Err(format!("dbench failed: {status}: {last}")),
    }
    Ok(done)
}

/// The processes that `parent` has started.
fn clients(parent: u32) -> impl Iterator<Item = Pid> {
    let children = format!("/proc/{parent}/task/{parent}/children");
    let children = std::fs::read_to_string(children).unwrap_or_default();
    let pids: Vec<i32> = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect();
    pids.into_iter().map(Pid::from_raw)
}

/// `   2     12345   123.45 MB/sec  execute   1 sec  latency 3.2 ms`
///
/// The first fifth of the time dbench calls warm-up; it counts on, and is as much work as the rest.
fn operations(line: &str) -> Option<u64> {
    let mut words = line.split_whitespace().skip(1);
    let operations = words.next()?.parse().ok()?;
    let of_work = line.contains("execute") || line.contains("warmup");
    (words.nth(1) == Some("MB/sec") && of_work).then_some(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_of_a_process_are_found() {
        let mut parent = Command::new("sh")
            .args(["-c", "sleep 600 & wait"])
            .spawn()
            .unwrap();
        let client = loop {
            if let Some(client) = clients(parent.id()).next() {
                break client;
            }
            std::thread::yield_now();
        };
        kill(client, Signal::SIGKILL).unwrap();
        // It waited for nothing else.
        assert!(parent.wait().unwrap().success());
        assert_eq!(clients(parent.id()).count(), 0);
    }

    #[test]
    fn what_dbench_says_is_understood() {
        assert_eq!(
            operations("   2     12345   123.45 MB/sec  execute   1 sec  latency 3.2 ms"),
            Some(12345)
        );
        assert_eq!(
            operations("   2     12345   123.45 MB/sec  warmup   1 sec  latency 3.2 ms"),
            Some(12345)
        );
        assert_eq!(
            operations("   2     12345   123.45 MB/sec  cleanup   1 sec  latency 3.2 ms"),
            None
        );
        assert_eq!(operations(" NTCreateX      1   0.1"), None);
    }
}
