//! A process that asks a manager for others.
//!
//! Tests speak as guests themselves, and a manager's API answers no process that runs a guest.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;

use levy_launcher::api_client::Client;
use levy_protocol::run_dir::api_socket;
use tempfile::TempDir;

/// Between where it listens and where the manager does: run directories.
#[derive(Debug, Clone, clap::Args)]
pub struct RelayOptions {
    /// Its own.
    #[arg(long)]
    at: PathBuf,
    /// The manager's.
    #[arg(long)]
    to: PathBuf,
}

impl RelayOptions {
    /// Relays until it is killed.
    pub(crate) fn run(&self) -> ExitCode {
        let Ok(listener) = UnixListener::bind(api_socket(&self.at)) else {
            return ExitCode::FAILURE;
        };
        for client in listener.incoming().flatten() {
            let manager = api_socket(&self.to);
            thread::spawn(move || converse(&client, &UnixStream::connect(manager)?));
        }
        ExitCode::SUCCESS
    }
}

/// Carries what both say until both have ended.
fn converse(client: &UnixStream, manager: &UnixStream) -> io::Result<()> {
    thread::scope(|scope| {
        scope.spawn(|| carry(client, manager));
        carry(manager, client);
    });
    Ok(())
}

fn carry(mut from: &UnixStream, mut to: &UnixStream) {
    // One that breaks off ends the other's connection too.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// The process, seen by a test. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    child: Child,
    dir: TempDir,
}

impl Relay {
    pub(crate) fn start(program: &Path, manager: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let child = Command::new(program)
            .arg("relay")
            .arg("--at")
            .arg(dir.path())
            .arg("--to")
            .arg(manager)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        Self { child, dir }
    }

    pub(crate) fn client(&self) -> Client {
        Client::at(self.dir.path())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
