//! PostgreSQL under pgbench. Every transaction books the same amount in four tables: at the end the sums must agree.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use levy_agent::Pgbench;

use super::run::{Going, Outcome, Run};
use super::service::{Scratch, Service, User, last_lines};

/// The cluster that comes with the disk; without it one is made, which takes much longer.
const PREPARED: &str = "/var/lib/levy/postgresql";

const BOOKS: &str = "select (select sum(abalance) from pgbench_accounts), \
    (select sum(bbalance) from pgbench_branches), (select sum(tbalance) from pgbench_tellers), \
    (select coalesce(sum(delta), 0) from pgbench_history), (select count(*) from pgbench_history)";

pub(super) fn run(parameters: &Pgbench, run: &mut Run) -> Outcome {
    let postgres = Postgres::prepare()?;
    let mut server = postgres.start()?;
    server.wait_for(|| postgres.sql("select 1").ok())?;
    let scale = parameters.scale.to_string();
    postgres.run("pgbench", &["-i", "-q", "-s", &scale])?;
    run.stats("loaded", [("accounts", (parameters.scale * 100_000).into())]);

    let going = run.begin_work();
    let mut bench = postgres.bench(parameters)?;
    let transactions = follow(&mut bench, run, &going)?;
    let mut done = run.done(transactions, "transactions");
    server.alive()?;
    postgres.check_books(transactions, going.stopped())?;
    done.detail = "the books agree".to_owned();
    Ok(done)
}

/// Where PostgreSQL's programs and data are, and as whom they run.
struct Postgres {
    scratch: Scratch,
    programs: PathBuf,
    data: PathBuf,
    user: Option<User>,
}

impl Postgres {
    fn prepare() -> Result<Self, String> {
        let scratch = Scratch::new("pgbench")?;
        // PostgreSQL refuses root; any other user runs it under their own name.
        let user = if nix::unistd::geteuid().is_root() {
            Some(User::named("postgres")?)
        } else {
            None
        };
        if let Some(user) = user {
            user.own(scratch.path())?;
        }
        let mut postgres = Self {
            data: PREPARED.into(),
            programs: programs()?,
            scratch,
            user,
        };
        if !postgres.data.join("PG_VERSION").exists() {
            postgres.data = postgres.scratch.join("data");
            let data = postgres.data.display().to_string();
            let arguments = [
                "-D",
                &data,
                "-A",
                "trust",
                "-U",
                "postgres",
                "--no-sync",
                "--locale=C",
            ];
            finish("initdb", postgres.command("initdb").args(arguments))?;
        }
        Ok(postgres)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .current_dir(self.scratch.path())
            .env("LC_ALL", "C")
            .env("PGDATABASE", "postgres");
        command
            .env("PGHOST", self.scratch.path())
            .env("PGUSER", "postgres");
        if let Some(user) = self.user {
            user.become_by(&mut command);
        }
        command
    }

    fn start(&self) -> Result<Service, String> {
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(&self.data)
            .arg("-k")
            .arg(self.scratch.path());
        command.args([
            "-c",
            "listen_addresses=",
            "-c",
            "shared_buffers=32MB",
            "-c",
            "max_connections=300",
        ]);
        Service::start("postgres", &mut command, &self.scratch)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        finish(program, self.command(program).args(arguments))
    }

    fn sql(&self, query: &str) -> Result<String, String> {
        self.run("psql", &["-X", "-A", "-t", "-F", " ", "-c", query])
    }

    fn bench(&self, parameters: &Pgbench) -> Result<Child, String> {
        let clients = parameters.clients.to_string();
        let mut command = self.command("pgbench");
        command.args([
            "-n",
            "-P",
            "1",
            "-c",
            &clients,
            "-j",
            "1",
            "-T",
            &parameters.seconds.to_string(),
        ]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
            .spawn()
            .map_err(|error| format!("cannot start pgbench: {error}"))
    }

    /// Sums of accounts, branches, tellers and history must be one number, and no transaction may be missing.
    fn check_books(&self, transactions: u64, stopped: bool) -> Result<(), String> {
        let row = self.sql(BOOKS)?;
        let numbers: Vec<i64> = row
            .split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect();
        let [accounts, branches, tellers, history, count] = numbers[..] else {
            return Err(format!("psql answers {row:?}"));
        };
        if [branches, tellers, history] != [accounts; 3] {
            return Err(format!(
                "accounts {accounts}, branches {branches}, tellers {tellers}, history {history}"
            ));
        }
        // A bench that was stopped does not say how many it made.
        if !stopped && u64::try_from(count) != Ok(transactions) {
            return Err(format!(
                "{count} transactions in the history instead of {transactions}"
            ));
        }
        Ok(())
    }
}

/// Debian keeps each version's programs apart; the newest is taken.
fn programs() -> Result<PathBuf, String> {
    let versions =
        fs::read_dir("/usr/lib/postgresql").map_err(|error| format!("PostgreSQL is missing: {error}"))?;
    let mut dirs: Vec<_> = versions
        .flatten()
        .map(|version| version.path().join("bin"))
        .collect();
    dirs.sort();
    let dir = dirs.pop().filter(|dir| dir.join("pgbench").exists());
    dir.ok_or_else(|| "PostgreSQL's programs are missing below /usr/lib/postgresql".to_owned())
}

fn finish(name: &str, command: &mut Command) -> Result<String, String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot start {name}: {error}"))?;
    if !output.status.success() {
        let words = last_lines(&String::from_utf8_lossy(&output.stderr));
        return Err(format!("{name} failed: {}: {words}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Follows pgbench's own progress lines to its end; returns its count of transactions.
fn follow(bench: &mut Child, run: &mut Run, going: &Going) -> Result<u64, String> {
    let lines = bench.stderr.take().ok_or("pgbench has no stderr")?;
    let (mut ops, mut last) = (0.0, String::new());
    for line in BufReader::new(lines).lines().map_while(Result::ok) {
        match tps(&line) {
            Some(tps) => {
                ops += tps;
                run.tick(ops as u64);
            }
            None => last = line,
        }
        if going.stopped() {
            let _ = bench.kill();
        }
    }
    let mut summary = String::new();
    if let Some(stdout) = bench.stdout.take() {
        let _ = std::io::Read::read_to_string(&mut BufReader::new(stdout), &mut summary);
    }
    let status = bench
        .wait()
        .map_err(|error| format!("pgbench is lost: {error}"))?;
    if going.stopped() {
        return Ok(ops as u64);
    }
    if !status.success() {
        return Err(format!("pgbench failed: {status}: {last}"));
    }
    processed(&summary)
        .ok_or_else(|| format!("pgbench's summary is not understood: {}", last_lines(&summary)))
}

/// `progress: 1.0 s, 123.4 tps, lat ...`
fn tps(line: &str) -> Option<f64> {
    let (_, rest) = line.strip_prefix("progress: ")?.split_once(" s, ")?;
    rest.split_once(" tps")?.0.parse().ok()
}

/// `number of transactions actually processed: 123`
fn processed(summary: &str) -> Option<u64> {
    let line = summary
        .lines()
        .find(|line| line.contains("actually processed:"))?;
    line.rsplit(':').next()?.trim().split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pgbench_says_is_understood() {
        assert_eq!(
            tps("progress: 1.0 s, 923.4 tps, lat 2.1 ms stddev 0.9, 0 failed"),
            Some(923.4)
        );
        assert_eq!(tps("pgbench: error: connection lost"), None);
        let summary =
            "scaling factor: 1\nnumber of transactions actually processed: 9312\nnumber of failed: 0";
        assert_eq!(processed(summary), Some(9312));
        assert_eq!(processed("nothing"), None);
    }
}
