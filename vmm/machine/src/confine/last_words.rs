//! What a process says that is about to end by its own fault.
//!
//! Directly, without a lock, and only where standard error takes it now: a full pipe would keep the process alive.

use std::io;

use crate::outlet;

/// Says `line`.
pub(super) fn say(line: &str) {
    outlet::offer(io::stderr(), line);
}

/// Has panics say where they happened, without a backtrace: that is looked for in files, which a confined thread may not
/// open, and the panic would be taken for a breach of confinement.
pub(super) fn of_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        say(&format!("levy: thread {name} {panic}"));
    }));
}
