//! A process that says that it is one of the guests, or what no guest says. Not the harness's own: a manager that takes
//! it in answers that process nothing at its API, and has the guest until that process ends.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::thief::words;
use levy_bench::Random;

/// How long the manager may take to answer.
const PATIENCE: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Impostor {
    /// The manager's run directory
    #[arg(long)]
    dir: PathBuf,
    /// The guest that it is not
    #[arg(long)]
    name: String,
    /// What it says follows from this
    #[arg(long)]
    seed: u64,
}

impl Impostor {
    /// Prints what the manager answers.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let heard = self.pretend(&mut Random::new(self.seed));
        print!("{heard:?}");
        Ok(ExitCode::SUCCESS)
    }

    fn pretend(&self, random: &mut Random) -> io::Result<String> {
        let mut stream = UnixStream::connect(self.dir.join("guests.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let (version, name) = (levy_protocol::link::VERSION, &self.name);
        let hello = format!(
            "{{\"type\":\"hello\",\"version\":{version},\"name\":\"{name}\",\"size\":16777216,\"min\":4096,\"shares\":1000,\
             \"sharing\":{{\"domain\":\"simulated\"}}}}\n"
        );
        match random.within(0..=2) {
            0 => stream.write_all(hello.as_bytes())?,
            1 => stream.write_all(&hello.as_bytes()[..hello.len() / 2])?,
            _ => stream.write_all(words(random).concat().as_bytes())?,
        }
        let mut answer = vec![0; 512];
        let length = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).trim().to_owned())
    }
}

/// Has such a process speak to the manager in `dir` and end; what it heard.
pub(crate) fn pretend(dir: &Path, name: &str, seed: u64) -> anyhow::Result<String> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("impostor").arg("--dir").arg(dir);
    command.args(["--name", name, "--seed", &seed.to_string()]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = output.context("cannot start a process")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
