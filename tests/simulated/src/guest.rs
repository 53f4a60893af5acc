//! A guest's process, from the outside.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use levy_protocol::process_memory::Held;
use serde::{Deserialize, Serialize};

use crate::{GuestOptions, PATIENCE, until};

/// A guest's process. Killed when dropped.
#[derive(Debug)]
pub struct Guest {
    name: String,
    child: Child,
    input: ChildStdin,
    status: Arc<Mutex<Status>>,
    answers: Receiver<Checked>,
}

/// What a guest's process says of itself. Pages of 4 KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Writes so far.
    pub writes: u64,
    /// Pages that a writer found wrong.
    pub wrong: u64,
    /// Pages with memory of their own.
    pub private: u64,
    /// Pages that are a common copy.
    pub shared: u64,
    /// Pages that are the zero page.
    pub zero: u64,
    /// Pages merged so far.
    pub merged: u64,
    /// Pages in the compressed store.
    pub compressed: u64,
    /// Bytes that those occupy.
    pub store_bytes: u64,
    /// Pages in the swap file.
    pub swapped: u64,
    /// Pages that could not be brought back.
    pub lost: u64,
    /// Pools of managers that are gone of which it has pages.
    pub old_pools: u64,
}

/// What a look at all pages found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Pages looked at.
    pub pages: u64,
    /// Words that were wrong.
    pub wrong: u64,
}

/// A line of the process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// How it is, ten times a second.
    Status(Status),
    /// The answer to `check`.
    Checked {
        /// Pages looked at.
        pages: u64,
        /// Words that were wrong.
        wrong: u64,
    },
    /// It cannot begin, or was told nonsense.
    Failed(String),
}

impl Guest {
    /// Starts one with `program`, under the manager in `dir`, and waits until it runs.
    pub fn start(program: &Path, dir: &Path, options: GuestOptions) -> Self {
        let options = GuestOptions {
            dir: dir.to_owned(),
            ..options
        };
        let mut child = Command::new(program)
            .args(options.to_args())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let status = Arc::new(Mutex::new(Status::default()));
        let (answer, answers) = channel();
        let (ready, is_ready) = channel();
        let heard = Arc::clone(&status);
        std::thread::spawn(move || listen(output, &heard, &answer, &ready));
        let started = is_ready.recv_timeout(PATIENCE).expect("it says how it is");
        if let Err(error) = started {
            panic!("guest {}: {error}", options.name);
        }
        Self {
            name: options.name,
            child,
            input,
            status,
            answers,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Bytes that its process holds, as the budget counts them.
    pub fn held(&self) -> u64 {
        Held::of(self.pid()).expect("its process is there").total()
    }

    /// What it last said, at most a tenth of a second ago.
    pub fn status(&self) -> Status {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until its status is as `wanted`.
    pub fn until(&self, what: &str, wanted: impl Fn(&Status) -> bool) {
        until(&format!("{}: {what}", self.name), || wanted(&self.status()));
    }

    /// Looks at all of its pages.
    pub fn check(&mut self) -> Checked {
        self.say("check");
        self.answers.recv_timeout(PATIENCE).expect("the guest answers")
    }

    /// Looks at all of its pages, now and at what its writers found so far.
    pub fn assert_right(&mut self) {
        let (checked, status) = (self.check(), self.status());
        assert_eq!(
            (checked.wrong, status.wrong, status.lost),
            (0, 0, 0),
            "{}",
            self.name
        );
    }

    /// Has its writers stand still, or go on.
    pub fn still(&mut self, still: bool) {
        self.say(if still { "still" } else { "go" });
    }

    /// Ends it with SIGKILL, as if it had never known.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn say(&mut self, word: &str) {
        writeln!(self.input, "{word}").expect("the guest is there");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

fn listen(
    output: impl BufRead,
    status: &Mutex<Status>,
    answers: &Sender<Checked>,
    ready: &Sender<Result<(), String>>,
) {
    for line in output.lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Said::Status(said)) => {
                *status.lock().unwrap_or_else(PoisonError::into_inner) = said;
                let _ = ready.send(Ok(()));
            }
            Ok(Said::Checked { pages, wrong }) => {
                let _ = answers.send(Checked { pages, wrong });
            }
            Ok(Said::Failed(error)) => {
                let _ = ready.send(Err(error));
            }
            Err(error) => {
                let _ = ready.send(Err(format!("{line:?}: {error}")));
            }
        }
    }
}
