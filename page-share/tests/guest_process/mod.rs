//! Processes that stand for those of guests: they live until they are told to die, and their death can be proven.
#![allow(dead_code, reason = "not every test needs every part")]

use std::process::{Child, Command, Stdio};

use page_share::{Dead, GuestProcess};

/// A process that does nothing.
pub(crate) struct Process {
    child: Child,
    pub(crate) watch: GuestProcess,
}

impl Process {
    pub(crate) fn start() -> Self {
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped()).stdout(Stdio::null());
        let child = cat.spawn().expect("cat starts");
        let watch = GuestProcess::of_child(child.id()).expect("it has not been waited for");
        Self { child, watch }
    }

    /// The same process, watched anew: as good as another one to a manager.
    pub(crate) fn again(mut self) -> Self {
        self.watch = GuestProcess::of_child(self.child.id()).expect("it has not been waited for");
        self
    }

    /// Kills it; returns the proof.
    pub(crate) fn die(mut self) -> Dead {
        self.child.kill().expect("it is ours");
        self.child.wait().expect("it is ours");
        self.watch.dead().expect("it was waited for")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
