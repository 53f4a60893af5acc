//! Obeying the host's commands.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command as Process, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use levy_agent::{Action, Command, Event, MAX_LINE, ModuleChange, Report, Verdict, Workload};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Map, Value};

use super::channel::Channel;
use super::{children, modules, power};

/// Bytes of each output stream that an exec answers with.
const OUTPUT_LIMIT: u64 = 10 * 1024;

/// The kernel gives PID 1 none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is needed to obey: the channel for answers and the runs under way by the id that started them.
pub(crate) struct Control {
    channel: Arc<Channel>,
    runs: Arc<Mutex<HashMap<u64, ChildStdin>>>,
}

impl Control {
    pub(crate) fn new(channel: Arc<Channel>) -> Self {
        Self {
            channel,
            runs: Arc::default(),
        }
    }

    /// Starts to obey; what takes time goes on in a thread.
    pub(crate) fn obey(&self, command: Command) {
        let id = command.id;
        let result = match command.action {
            Action::Run(workload) => match self.start(id, &workload) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            Action::Exec { argv, seconds } => {
                let channel = Arc::clone(&self.channel);
                thread::spawn(move || answer(&channel, id, exec(&argv, seconds)));
                return;
            }
            Action::Stop { target } => self.stop(target),
            Action::Meminfo => Ok(meminfo()),
            Action::Module {
                name,
                change: ModuleChange::Insert,
            } => modules::insert(&name).map(nothing),
            Action::Module {
                name,
                change: ModuleChange::Remove,
            } => modules::remove(&name).map(nothing),
            Action::Poweroff => self.end(id, power::End::Poweroff),
            Action::Reboot => self.end(id, power::End::Reboot),
            Action::Halt => self.end(id, power::End::Halt),
            Action::Panic => power::crash().map(nothing),
        };
        answer(&self.channel, id, result);
    }

    fn end(&self, id: u64, how: power::End) -> ! {
        answer(&self.channel, id, Ok(Map::new()));
        power::end(how)
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<u64, ChildStdin>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, id: u64, workload: &Workload) -> Result<(), String> {
        let mut runs = self.runs();
        if runs.contains_key(&id) {
            return Err(format!("a run with id {id} is still going on"));
        }
        let json = serde_json::to_string(workload).map_err(|error| error.to_string())?;
        let mut process = Process::new("/proc/self/exe");
        process
            .arg0("levy-agent")
            .args(["work", &id.to_string(), &json])
            .env("PATH", PATH)
            // Where it is told to stop.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // Its mistakes are for people: the human console, which PID 1 has as stderr.
        let mut child =
            children::spawn(&mut process).map_err(|error| format!("cannot start a run: {error}"))?;
        if let Some(stdin) = child.stdin.take() {
            runs.insert(id, stdin);
        }
        let (channel, runs, name) = (Arc::clone(&self.channel), Arc::clone(&self.runs), workload.name());
        thread::spawn(move || {
            let judged = relay(&channel, &mut child);
            let status = children::wait(&mut child);
            // If it was killed, its servers are still there.
            let _ = killpg(pid_of(&child), Signal::SIGKILL);
            runs.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            if !judged {
                channel.answer(Some(id), no_verdict(name, status.ok()));
            }
        });
        Ok(())
    }

    fn stop(&self, target: u64) -> Result<Map<String, Value>, String> {
        let mut runs = self.runs();
        let stdin = runs
            .get_mut(&target)
            .ok_or_else(|| format!("no run with id {target} is going on"))?;
        stdin
            .write_all(b"stop\n")
            .map_err(|error| format!("cannot stop run {target}: {error}"))?;
        Ok(Map::new())
    }
}

fn answer(channel: &Channel, id: u64, result: Result<Map<String, Value>, String>) {
    let report = match result {
        Ok(values) => Report::Done { values },
        Err(message) => Report::Error { message },
    };
    channel.answer(Some(id), report);
}

fn nothing((): ()) -> Map<String, Value> {
    Map::new()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

/// Passes the lines of a run on to the host; true if there was a verdict among them.
fn relay(channel: &Channel, child: &mut Child) -> bool {
    let Some(stdout) = child.stdout.take() else {
        return false;
    };
    let mut judged = false;
    let lines = BufReader::new(stdout).lines().map_while(Result::ok);
    for line in lines.filter(|line| line.len() < MAX_LINE) {
        judged |= Event::parse(&line).is_ok_and(|event| matches!(event.report, Report::Verdict(_)));
        channel.write_line(&format!("{line}\n"));
    }
    judged
}

fn no_verdict(run: &str, status: Option<ExitStatus>) -> Report {
    let killed = status.and_then(|status| status.signal());
    let detail = match (killed, status) {
        (Some(9), _) => "killed by signal 9: probably out of memory".to_owned(),
        (Some(signal), _) => format!("killed by signal {signal}"),
        (None, Some(status)) => format!("ended without a verdict: {status}"),
        (None, None) => "lost".to_owned(),
    };
    Report::Verdict(Verdict {
        run: run.to_owned(),
        detail,
        ..Verdict::default()
    })
}

/// /proc/meminfo as numbers of kB (or plain counts where it has no unit).
pub(crate) fn meminfo() -> Map<String, Value> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let parse = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let number: u64 = rest.split_whitespace().next()?.parse().ok()?;
        Some((name.to_owned(), number.into()))
    };
    text.lines().filter_map(parse).collect()
}

fn exec(argv: &[String], seconds: u64) -> Result<Map<String, Value>, String> {
    let (program, args) = argv.split_first().ok_or("argv is empty")?;
    let mut process = Process::new(program);
    process
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    process.env("PATH", PATH);
    let mut child =
        children::spawn(&mut process).map_err(|error| format!("cannot start {program}: {error}"))?;
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let in_time = wait_until(&mut child, Instant::now() + Duration::from_secs(seconds));
    let status = children::wait(&mut child).map_err(|error| format!("cannot wait for {program}: {error}"))?;
    if !in_time {
        return Err(format!("{program} was killed after {seconds} s"));
    }
    let text = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
    Ok(Map::from_iter([
        (
            "status".to_owned(),
            status.code().map_or(Value::Null, Value::from),
        ),
        (
            "signal".to_owned(),
            status.signal().map_or(Value::Null, Value::from),
        ),
        ("stdout".to_owned(), text(out).into()),
        ("stderr".to_owned(), text(err).into()),
    ]))
}

/// Waits for the end of `child` and kills it at the deadline; true if it ended by itself.
fn wait_until(child: &mut Child, deadline: Instant) -> bool {
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() > deadline => {
                let _ = child.kill();
                return false;
            }
            Ok(None) => thread::sleep(Duration::from_millis(5)),
            Ok(Some(_)) | Err(_) => return true,
        }
    }
}

/// Reads a stream to its end in a thread and keeps its beginning.
fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.by_ref().take(OUTPUT_LIMIT).read_to_end(&mut kept);
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        // Control characters would take six bytes each in JSON; without them both streams fit into a line.
        let plain = |c: char| {
            if c.is_control() && !matches!(c, '\n' | '\r' | '\t') {
                '?'
            } else {
                c
            }
        };
        String::from_utf8_lossy(&kept).chars().map(plain).collect()
    })
}
