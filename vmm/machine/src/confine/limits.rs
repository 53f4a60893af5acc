//! What is limited besides system calls: who dies first when memory is short, core dumps, descriptors; and the check
//! that no thread was forgotten.

use std::time::{Duration, Instant};
use std::{fs, io, thread};

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

use super::ConfineError;
use levy_protocol::mark;

/// How much rather a VMM is killed than its manager, which all its guests need: a fifth of the host's memory counts as
/// if the VMM had it too.
const PREFERENCE: i32 = 200;

/// Descriptors that a running VMM may still need: clients of its sockets, connections to a manager that came back and
/// the descriptors that it sends.
const MORE_DESCRIPTORS: u64 = 64;

/// How long a thread that was just started may take to confine itself. The host may be an emulated one.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes this process, should the kernel run out of memory, a likelier victim than a manager.
///
/// # Errors
/// What the kernel says.
pub fn prefer_as_victim() -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now: i32 = fs::read_to_string(FILE)?.trim().parse().unwrap_or(0);
    fs::write(FILE, (now + PREFERENCE).min(1000).to_string())
}

/// Takes from the whole process what a running guest does not need.
pub(super) fn close_process() -> Result<(), ConfineError> {
    let refused = |step| {
        move |errno: nix::Error| ConfineError::Refused {
            step,
            source: errno.into(),
        }
    };
    // The domain's key and guest bytes in flight are in this process's own memory.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(refused("forbid core dumps"))?;
    let highest = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok())
        .max();
    if let Some(highest) = highest {
        let most = highest + 1 + MORE_DESCRIPTORS;
        setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(refused("limit descriptors"))?;
    }
    // From here on its guest may take it over, and its neighbours and their manager are to know it.
    mark::put_on_this_process().map_err(|source| ConfineError::Refused {
        step: "mark the process by its limit of message queues (ulimit -q)",
        source,
    })?;
    prctl::set_dumpable(false).map_err(refused("hide the process from others"))
}

/// Waits until every other thread of this process is confined.
pub(super) fn check_threads() -> Result<(), ConfineError> {
    let begin = Instant::now();
    loop {
        let forgotten = unconfined().map_err(|source| ConfineError::Refused {
            step: "list the threads",
            source,
        })?;
        if forgotten.is_empty() {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            let threads = forgotten.join(", ");
            return Err(ConfineError::Forgotten { threads });
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The names of all threads but the calling one that are under no filter.
pub(super) fn unconfined() -> io::Result<Vec<String>> {
    let own = nix::unistd::gettid().to_string();
    let mut names = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        if entry.file_name().to_str() == Some(&own) {
            continue;
        }
        // A thread that ended meanwhile needs nothing any more.
        let Ok(text) = fs::read_to_string(entry.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        if field("Seccomp:") != "2" {
            names.push(field("Name:"));
        }
    }
    Ok(names)
}
