//! `cargo xtask nested-inside`: the end of the channel that runs inside the nested host and starts the jobs there.
//!
//! The machine outside started this same binary from the shared root, so both ends are always of one version.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use super::wire::{Frame, Job};

/// The port's name on both sides.
pub(crate) const PORT: &str = "levy.nested";

/// How long output may still trickle after a job has ended.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

type Port = Arc<Mutex<File>>;

enum Event {
    FromOutside(Frame),
    OutsideIsGone,
    Exited(i32),
}

/// Serves jobs until the machine outside closes the channel; init then switches the nested host off.
pub(crate) fn run() -> Result<()> {
    let path = port()?;
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))
    };
    let from = open()?;
    let to = Arc::new(Mutex::new(from.try_clone()?));
    let (tell, events) = channel();
    let teller = tell.clone();
    std::thread::spawn(move || listen(from, &teller));
    send(&to, &Frame::Ready)?;
    loop {
        match events.recv()? {
            Event::FromOutside(Frame::Start(job)) => {
                let status = serve(&job, &to, &tell, &events)?;
                send(&to, &Frame::Exit(status))?;
            }
            Event::OutsideIsGone => return Ok(()),
            Event::FromOutside(_) | Event::Exited(_) => {}
        }
    }
}

fn port() -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports").context("there are no virtio ports")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    bail!("no virtio port is called {PORT}: this command only works inside the nested host");
}

fn listen(mut from: File, tell: &Sender<Event>) {
    while let Ok(Some(frame)) = Frame::read(&mut from) {
        if tell.send(Event::FromOutside(frame)).is_err() {
            return;
        }
    }
    let _ = tell.send(Event::OutsideIsGone);
}

fn send(to: &Port, frame: &Frame) -> Result<()> {
    let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
    frame.write(&mut *to).context("the channel to the outside broke")
}

/// Runs one job to its end and returns its status.
fn serve(job: &Job, to: &Port, tell: &Sender<Event>, events: &Receiver<Event>) -> Result<i32> {
    let mut command = Command::new(&job.argv[0]);
    command
        .args(&job.argv[1..])
        .current_dir(&job.cwd)
        .env_clear()
        .envs(job.env.iter().map(|(name, value)| (name, value)))
        .env("LEVY_NESTED", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let line = format!("cannot start {:?} in {}: {error}\n", job.argv[0], job.cwd);
            send(to, &Frame::Stderr(line.into_bytes()))?;
            return Ok(127);
        }
    };
    let group = Pid::from_child(&child);
    let (done, copied) = channel();
    if let Some(stdout) = child.stdout.take() {
        copy(stdout, Frame::Stdout, to, &done);
    }
    if let Some(stderr) = child.stderr.take() {
        copy(stderr, Frame::Stderr, to, &done);
    }
    drop(done);
    let tell = tell.clone();
    std::thread::spawn(move || {
        let status = child.wait().map_or(-1, code);
        let _ = tell.send(Event::Exited(status));
    });
    let status = wait(group, events)?;
    // Whatever of the job's group is left would hold its output open; a job is over when it is over.
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    while copied.recv_timeout(LAST_OUTPUT).is_ok() {}
    Ok(status)
}

fn wait(group: Pid, events: &Receiver<Event>) -> Result<i32> {
    loop {
        match events.recv()? {
            Event::Exited(status) => return Ok(status),
            Event::FromOutside(Frame::Kill) => {
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
            }
            Event::FromOutside(_) => {}
            Event::OutsideIsGone => bail!("the outside is gone"),
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Copies `from` to the channel until it ends, then drops its `done`.
fn copy(mut from: impl Read + Send + 'static, frame: fn(Vec<u8>) -> Frame, to: &Port, done: &Sender<()>) {
    let (to, done) = (Arc::clone(to), done.clone());
    std::thread::spawn(move || {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if send(&to, &frame(buffer[..count].to_vec())).is_err() {
                break;
            }
        }
        let _ = std::io::stdout().flush();
        drop(done);
    });
}
