//! The round once a second, and how often there may be one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use allocator::GuestId;
use page_share::{Dead, LocalManager};

use super::host::Host;
use super::policy::Round;
use super::sent_orders::SentOrders;
use levy_protocol::link::{FromManager, Orders};
use levy_protocol::process_memory::ProcessMemory;

/// Shortest time between two rounds.
const QUICK: Duration = Duration::from_millis(20);

/// Rounds take no more than this part of a CPU, as a divisor, however often a guest asks for one.
const PART: u32 = 20;

/// Longest time for which a guest that waits has no round: more guests than that suffices for cost more of a CPU.
const LONGEST_REST: Duration = Duration::from_millis(230);

/// Most that may pass in one round. Where there is more between two, the manager did not run, and nothing that guests
/// did or left undone meanwhile is known.
const LONGEST_ROUND: Duration = Duration::from_secs(2);

/// Time between two rounds where the one before could not plan.
const AGAIN: Duration = Duration::from_secs(1);

/// When rounds are due.
#[derive(Debug)]
struct Pace {
    last: Instant,
    soonest: Duration,
    next: Duration,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            last: now,
            soonest: QUICK,
            next: AGAIN,
        }
    }

    /// A round begins at `now`; returns the time since the one before.
    fn begin(&mut self, now: Instant) -> Duration {
        let gap = now.saturating_duration_since(self.last);
        self.last = now;
        gap
    }

    /// It took `cpu` of this thread's time, and the next is due after `next`. Time for which others had the CPU is not
    /// counted: on a busy machine rounds would become rare just when they are needed.
    fn end(&mut self, cpu: Duration, next: Duration) {
        self.soonest = (cpu * PART).clamp(QUICK, LONGEST_REST);
        self.next = next.max(self.soonest);
    }
}

impl Host {
    /// Runs rounds until [`Host::close`].
    pub fn run(&self) {
        let mut pace = Pace::new(Instant::now());
        let (mut sent_orders, mut process_memory) = (SentOrders::default(), ProcessMemory::default());
        while !self.is_closing() {
            self.round_trigger()
                .wait_between(pace.last + pace.soonest, pace.last + pace.next);
            let (began, cpu) = (Instant::now(), thread_cpu());
            let gap = pace.begin(began);
            self.look_after_sockets();
            self.remove_the_dead();
            self.update_memory_high();
            let elapsed = gap.min(LONGEST_ROUND);
            self.count(elapsed, &mut process_memory);
            let next = self.round(elapsed, &mut sent_orders).unwrap_or_else(|error| {
                let reason = self.registry().named(&error.to_string());
                let line = format!("no plan this second, the last orders stay: {reason}");
                if let Some(line) = self.statistics().repeats.admit(&line, began) {
                    log::error!("{line}");
                }
                AGAIN
            });
            pace.end(thread_cpu().saturating_sub(cpu), next);
            self.statistics().rounds.note(gap, began.elapsed());
        }
    }

    /// Counts what is held. Asking the kernel about a thousand processes takes long enough to do it without the registry's
    /// lock.
    fn count(&self, elapsed: Duration, process_memory: &mut ProcessMemory) {
        process_memory.pass(elapsed);
        let survey = self.registry().survey();
        let measured = survey.measure(process_memory);
        self.registry().take_in(&measured);
    }

    /// One round; returns when the next one is due.
    fn round(
        &self,
        elapsed: Duration,
        sent_orders: &mut SentOrders,
    ) -> Result<Duration, allocator::FleetError> {
        let (next, orders, (pools, old_pools), domains) = {
            let mut registry = self.registry();
            let Round { next, pools, .. } = *registry.round(elapsed)?;
            // A guest that waits is answered, whatever the answer.
            for (member, _) in registry.guests().filter(|(member, _)| member.waits()) {
                sent_orders.forget(member.id);
            }
            let orders = registry
                .guests()
                .map(|(member, process)| (member.id, process.orders));
            let orders: BTreeMap<GuestId, Orders> = orders.collect();
            let domains: Vec<LocalManager> = registry.domains().values().cloned().collect();
            (next, orders, (pools, registry.old_pools()), domains)
        };
        pools.divide(&domains, old_pools);
        sent_orders.keep(|id| orders.contains_key(&id));
        for (id, orders) in orders {
            if sent_orders.is_news(id, &orders) && self.tell(id, &FromManager::Orders(orders)) {
                sent_orders.sent(id, orders);
            }
        }
        Ok(next)
    }

    /// A closed connection releases nothing; a dead process does. Looks for those again, too, that could not be looked at
    /// when the manager began.
    pub(super) fn remove_the_dead(&self) {
        let (changed, back) = {
            let mut registry = self.registry();
            let dead: Vec<(GuestId, Dead)> = registry
                .guests()
                .filter_map(|(member, process)| Some((member.id, process.handle.dead()?)))
                .collect();
            for (id, dead) in &dead {
                registry.remove_dead(dead);
                self.links().remove(*id);
            }
            let (known, back) = registry.watch_again();
            (known || !dead.is_empty(), back)
        };
        for (id, pid) in back {
            self.enter_cgroup(id, pid);
        }
        if changed {
            self.write_trigger().fire();
        }
    }
}

fn thread_cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_rest_by_the_cpu_they_took_and_never_long() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let mut rests = |cpu_ms: u64, next_ms: u64| {
            pace.end(Duration::from_millis(cpu_ms), Duration::from_millis(next_ms));
            (pace.soonest.as_millis(), pace.next.as_millis())
        };
        assert_eq!(rests(0, 1000), (20, 1000));
        assert_eq!(rests(5, 1000), (100, 1000));
        assert_eq!(rests(5, 0), (100, 100));
        // A thousand guests on a slow machine: a guest that waits is still heard four times a second.
        assert_eq!(rests(400, 0), (230, 230));
        assert_eq!(rests(60_000, 250), (230, 250));
    }

    #[test]
    fn gaps_are_counted_from_begin_to_begin() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        assert_eq!(pace.begin(begin + Duration::from_secs(1)), Duration::from_secs(1));
        assert_eq!(
            pace.begin(begin + Duration::from_millis(1300)),
            Duration::from_millis(300)
        );
        assert_eq!(pace.begin(begin), Duration::ZERO, "a clock that goes back");
    }
}
