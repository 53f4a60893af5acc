//! A child process that is read line by line, and ended with all that it started when it falls silent.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::interrupt;
use crate::nested::Stream;

/// How often a wait looks for Ctrl-C and for the end of the child.
const TICK: Duration = Duration::from_millis(100);

/// How long output may still come after the end of the child, from its readers here or from processes that it left.
const LATE: Duration = Duration::from_secs(5);

/// How long a child may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// From its start to its end.
    Total(Duration),
    /// From one line on its standard output to the next, and to its end.
    Silence(Duration),
}

/// How the child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself.
    Ended(ExitStatus),
    /// It passed its limit and was killed.
    Killed,
}

/// Runs `command` and hands over each line that it and its children print.
pub(crate) fn run(command: &mut Command, limit: Limit, line: &mut dyn FnMut(Stream, &str)) -> Result<Ending> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let program = command.get_program().display().to_string();
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut group = Group(child);
    let lines = group.lines()?;
    let (Limit::Total(time) | Limit::Silence(time)) = limit;
    let mut until = Instant::now() + time;
    let mut ended = false;
    loop {
        interrupt::check()?;
        match lines.recv_timeout(TICK) {
            Ok((stream, text)) => {
                if stream == Stream::Out && !ended && matches!(limit, Limit::Silence(_)) {
                    until = Instant::now() + time;
                }
                line(stream, &text);
            }
            Err(RecvTimeoutError::Disconnected) if ended => break,
            Err(RecvTimeoutError::Disconnected) => thread::sleep(TICK),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        if !ended && group.has_ended()? {
            ended = true;
            until = now + LATE;
        }
        if now > until {
            break;
        }
    }
    group.kill();
    let status = group.0.wait()?;
    Ok(if ended {
        Ending::Ended(status)
    } else {
        Ending::Killed
    })
}

/// A process group by its first process. Killed when dropped.
struct Group(Child);

impl Group {
    /// The lines of both streams; the channel closes after the last.
    fn lines(&mut self) -> Result<Receiver<(Stream, String)>> {
        let (tell, told) = channel();
        let stdout = self.0.stdout.take().context("no standard output")?;
        let stderr = self.0.stderr.take().context("no standard error")?;
        read(Stream::Out, stdout, tell.clone());
        read(Stream::Err, stderr, tell);
        Ok(told)
    }

    /// Whether the first process has ended. It stays a zombie, which keeps the group's number from being used again.
    fn has_ended(&self) -> Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::Pid(Pid::from_child(&self.0)), options)?;
        Ok(status.is_some())
    }

    fn kill(&self) {
        // Fails only when nothing of the group is left.
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        self.kill();
        let _ = self.0.wait();
    }
}

fn read(stream: Stream, from: impl Read + Send + 'static, tell: Sender<(Stream, String)>) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        while matches!(from.read_until(b'\n', &mut bytes), Ok(1..)) {
            let text = String::from_utf8_lossy(&bytes);
            if tell
                .send((stream, text.trim_end_matches('\n').to_owned()))
                .is_err()
            {
                return;
            }
            bytes.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(300);

    /// More than a shell needs to start, most of the time; a shell that needs more is killed all the same.
    const SHORT: Duration = Duration::from_secs(2);

    fn shell(script: &str, limit: Limit) -> (Ending, Vec<String>) {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let outcome = run(&mut command, limit, &mut |stream, text| {
            lines.push(format!("{stream:?} {text}"));
        });
        lines.sort();
        (outcome.unwrap(), lines)
    }

    #[test]
    fn both_streams_are_read_to_the_end() {
        let (outcome, lines) = shell(
            r"echo a; echo b >&2; printf '\377c'; exit 3",
            Limit::Silence(PATIENCE),
        );
        assert!(
            matches!(outcome, Ending::Ended(status) if status.code() == Some(3)),
            "{outcome:?}"
        );
        assert_eq!(lines, ["Err b", "Out a", "Out \u{FFFD}c"]);
    }

    #[test]
    fn a_silent_child_is_killed_with_its_children() {
        let (outcome, lines) = shell("sleep 1000 & echo $!; wait", Limit::Silence(SHORT));
        assert_eq!(outcome, Ending::Killed);
        let child = lines[0].strip_prefix("Out ").unwrap();
        let status = || std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let until = Instant::now() + PATIENCE;
        // A zombie that its new parent has not looked after yet is dead, too.
        while !status().is_empty() && !status().contains(") Z ") {
            assert!(Instant::now() < until, "{child} lives on: {}", status());
            thread::sleep(TICK);
        }
    }

    #[test]
    fn noise_on_standard_error_is_no_sign_of_life() {
        let script = "while :; do echo noise >&2; sleep 0.1; done";
        assert_eq!(shell(script, Limit::Silence(SHORT)).0, Ending::Killed);
    }

    #[test]
    fn talking_does_not_put_off_a_total_limit() {
        let script = "while :; do echo noise; sleep 0.1; done";
        assert_eq!(shell(script, Limit::Total(SHORT)).0, Ending::Killed);
    }

    #[test]
    fn a_child_that_closed_its_output_is_waited_for() {
        let (outcome, _) = shell("exec >&- 2>&-; sleep 0.5; exit 4", Limit::Silence(PATIENCE));
        assert!(
            matches!(outcome, Ending::Ended(status) if status.code() == Some(4)),
            "{outcome:?}"
        );
    }

    #[test]
    fn a_process_that_outlives_the_child_holds_nothing_up() {
        let (outcome, lines) = shell("echo done; sleep 1000 &", Limit::Silence(PATIENCE));
        assert!(
            matches!(outcome, Ending::Ended(status) if status.success()),
            "{outcome:?}"
        );
        assert_eq!(lines, ["Out done"]);
    }
}
