//! How many connections one process may have at a socket, and how often it may open one.

use std::collections::BTreeMap;
use std::time::Instant;

use super::rate_limiter::RateLimiter;

/// Connections that one process may have at a socket at a time.
const CONNECTIONS: u32 = 16;

/// Connections that one process may open in a row, and a second in the long run: it needs two, and again after a loss.
const OPENED_AT_ONCE: f64 = 40.0;
const OPENED_PER_SECOND: f64 = 4.0;

/// Processes that are remembered before those that have been quiet are forgotten.
const CALLERS: usize = 256;

/// The connections of each process.
#[derive(Debug, Default)]
pub(super) struct ConnectionLimits(BTreeMap<u32, Caller>);

/// A process that connects.
#[derive(Debug)]
struct Caller {
    connections: u32,
    opened: RateLimiter,
}

impl ConnectionLimits {
    /// Lets one more connection of process `pid` in, unless it has enough or connects too often.
    pub(super) fn enter(&mut self, now: Instant, pid: u32) -> bool {
        if self.0.len() >= CALLERS {
            self.0
                .retain(|_, caller| caller.connections > 0 || !caller.opened.is_whole(now));
        }
        let caller = self.0.entry(pid).or_insert_with(|| Caller {
            connections: 0,
            opened: RateLimiter::new(now, OPENED_AT_ONCE, OPENED_PER_SECOND),
        });
        let allowed = caller.opened.take(now) && caller.connections < CONNECTIONS;
        caller.connections += u32::from(allowed);
        allowed
    }

    /// One of them has ended.
    pub(super) fn leave(&mut self, pid: u32) {
        if let Some(caller) = self.0.get_mut(&pid) {
            caller.connections -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_so_many_connections_and_no_more() {
        let now = Instant::now();
        let mut limits = ConnectionLimits::default();
        // Fewer attempts than are allowed in a row: what is left decides below.
        let entered = (0..30).filter(|_| limits.enter(now, 7)).count();
        assert_eq!(entered, CONNECTIONS as usize);
        assert!(limits.enter(now, 8));
        limits.leave(7);
        assert!(limits.enter(now, 7));
    }
}
