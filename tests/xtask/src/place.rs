//! Where programs that start real guests run: on this machine, or in a nested host that is booted once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use levy::doctor::Machine;

use crate::nested::{self, Host, JobEnd, Shape, Stream};
use crate::watched::{self, Limit};

/// A place for real guests.
pub(crate) enum Place {
    /// This machine.
    Native,
    /// The nested host.
    Nested(Box<Host>),
}

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// What the machine can do.
    Probe,
    /// The user: nested.
    Nested,
}

impl From<bool> for Choice {
    fn from(nested: bool) -> Self {
        if nested { Self::Nested } else { Self::Probe }
    }
}

impl Place {
    /// This machine if stock kernels run on it, else a nested host with `memory_mib` and `results` writable.
    pub(crate) fn choose(choice: Choice, memory_mib: u64, results: Option<&Path>) -> Result<Self> {
        if choice == Choice::Probe {
            let machine = Machine::probe();
            if machine.runs_kernels() {
                return Ok(Self::Native);
            }
            eprintln!("{machine}");
            eprintln!("booting the nested host for real guests");
        }
        let host = nested::boot(&Shape {
            cpus: nested::CPUS,
            memory_mib,
            results: results.map(PathBuf::from),
        })?;
        Ok(Self::Nested(Box::new(host)))
    }

    /// Runs a program and hands over each line of its standard output; its error output goes to ours.
    pub(crate) fn run(
        &mut self,
        argv: Vec<String>,
        environment: &[(String, String)],
        deadline: Duration,
        line: &mut dyn FnMut(&str),
    ) -> Result<i32> {
        let name = argv.first().cloned().unwrap_or_default();
        let status = match self {
            Self::Native => native(&argv, environment, deadline, line)?,
            Self::Nested(host) => nested_run(host, argv, environment, deadline, line)?,
        };
        status.with_context(|| format!("{name} was still running after {} s", deadline.as_secs()))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Native => write!(f, "on this machine"),
            Self::Nested(_) => write!(f, "in the nested host"),
        }
    }
}

fn nested_run(
    host: &mut Host,
    argv: Vec<String>,
    environment: &[(String, String)],
    deadline: Duration,
    line: &mut dyn FnMut(&str),
) -> Result<Option<i32>> {
    let mut job = nested::job(argv)?;
    job.env.extend(environment.iter().cloned());
    let mut lines = Lines::default();
    let outcome = host.run(&job, deadline, |stream, bytes| match stream {
        Stream::Out => {
            lines.feed(bytes, line);
            Ok(())
        }
        Stream::Err => nested::pass_on(stream, bytes),
    })?;
    lines.finish(line);
    Ok(match outcome {
        JobEnd::Exited(status) => Some(status),
        JobEnd::TimedOut => None,
    })
}

fn native(
    argv: &[String],
    environment: &[(String, String)],
    deadline: Duration,
    line: &mut dyn FnMut(&str),
) -> Result<Option<i32>> {
    let Some((program, rest)) = argv.split_first() else {
        bail!("no program to run")
    };
    let mut command = Command::new(program);
    command.args(rest).envs(environment.iter().cloned());
    let mut both = |stream, text: &str| match stream {
        Stream::Out => line(text),
        Stream::Err => eprintln!("{text}"),
    };
    Ok(
        match watched::run(&mut command, Limit::Total(deadline), &mut both)? {
            watched::Ending::Ended(status) => Some(status.code().unwrap_or(1)),
            watched::Ending::Killed => None,
        },
    )
}

/// Puts lines together from pieces.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], line: &mut dyn FnMut(&str)) {
        self.rest.extend(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let whole: Vec<u8> = self.rest.drain(..=end).collect();
            line(&String::from_utf8_lossy(&whole[..end]));
        }
    }

    fn finish(&mut self, line: &mut dyn FnMut(&str)) {
        if !self.rest.is_empty() {
            line(&String::from_utf8_lossy(&std::mem::take(&mut self.rest)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_from_pieces() {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        for piece in ["a", "b\nc\n", "", "d"] {
            lines.feed(piece.as_bytes(), &mut |line| seen.push(line.to_owned()));
        }
        lines.finish(&mut |line| seen.push(line.to_owned()));
        assert_eq!(seen, ["ab", "c", "d"]);
    }
}
