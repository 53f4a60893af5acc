//! The mark on processes that a guest may have taken over.
//!
//! Guests' processes run as the same user as their manager, their neighbours and that user's tools, and the kernel lets
//! each connect to the sockets of all. What tells them apart is a limit that means nothing to them: before a guest runs,
//! its process takes [`MARK`] as its hard limit of message queues. Confined, it can neither raise nor lower that again,
//! nor start a process without it. Any process of the same user can read it, with prlimit(2) too, where it may open no
//! file.

use std::fs;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Bytes of POSIX message queues, soft and hard: a number that nothing else has for a limit, low enough to be within every
/// one.
pub const MARK: u64 = 19_571;

/// How the kernel calls that limit.
const NAME: &str = "Max msgqueue size";

/// Marks this process, for good once it is confined.
///
/// # Errors
/// When its limit is lower already.
pub fn put_on_this_process() -> std::io::Result<()> {
    let mark = Some(MARK);
    setrlimit(
        Resource::Msgqueue,
        Rlimit {
            current: mark,
            maximum: mark,
        },
    )?;
    Ok(())
}

/// Whether process `pid` is marked; `None` when it cannot be looked at, because it is gone, or hidden.
pub fn is_on(pid: u32) -> Option<bool> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let limit = limits.lines().find_map(|line| line.strip_prefix(NAME))?;
    let hard = limit.split_whitespace().nth(1)?;
    Some(hard.parse() == Ok(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_not_marked_and_one_that_is_gone_cannot_be_looked_at() {
        assert_eq!(is_on(std::process::id()), Some(false));
        assert_eq!(is_on(u32::MAX), None);
    }
}
