//! What there is to know of a balloon, as it was at the end of its device's last turn.

use std::time::Instant;

use balloon_driver::controller::Status;
use balloon_driver::{Counters, Statistics};
use serde_json::{Map, Value, json};

use super::{BalloonConfig, FRAMES_PER_MIB, pilot};
use levy_protocol::link::BalloonReport;

/// A balloon's figures. Sizes are pages of 4 KiB.
#[derive(Clone, Copy, Debug)]
pub struct Picture {
    pub(super) config: BalloonConfig,
    pub(super) owner: u64,
    pub(super) goal: u64,
    pub(super) status: Status,
    pub(super) target: u64,
    pub(super) ballooned: u64,
    pub(super) claimed: u64,
    pub(super) counters: Counters,
    pub(super) statistics: Option<Statistics>,
}

impl Picture {
    /// Of a balloon that has never been at work.
    pub(super) fn of_new(config: BalloonConfig) -> Self {
        Self {
            config,
            owner: 0,
            goal: 0,
            status: Status::Absent,
            target: 0,
            ballooned: 0,
            claimed: 0,
            counters: Counters::default(),
            statistics: None,
        }
    }

    /// Whether the balloon moves, so that its next step is near.
    pub(super) fn is_busy(&self) -> bool {
        pilot::is_busy(self.status)
    }

    /// What the balloon's manager wants to know.
    pub fn report(&self) -> BalloonReport {
        let latest = &self.statistics;
        let values = latest.iter().flat_map(|latest| latest.values.iter());
        BalloonReport {
            target_pages: self.target,
            actual_pages: self.ballooned,
            unresponsive: self.is_unresponsive(),
            statistics: values.map(|(_, name, value)| (name.to_owned(), value)).collect(),
            statistics_age_seconds: latest.map(|latest| latest.age(Instant::now()).as_secs_f64()),
        }
    }

    /// Whether the host must reclaim by other means: no driver, or one that owes work and says nothing.
    fn is_unresponsive(&self) -> bool {
        matches!(self.status, Status::Absent | Status::Unresponsive { .. })
    }

    /// The balloon's figures; what the guest claims stands apart from what the host knows.
    pub fn figures(&self) -> Value {
        let mib = |frames: u64| frames / FRAMES_PER_MIB;
        let counters = self.counters;
        json!({
            "amount_mib": mib(self.owner),
            "goal_mib": mib(self.goal),
            "deflate_on_oom": self.config.deflate_on_oom,
            "stats_polling_interval_s": self.config.stats_polling_interval.as_secs_f64(),
            "controller": pilot::describe(self.status),
            "unresponsive": self.is_unresponsive(),
            "target_mib": mib(self.target),
            "ballooned_mib": mib(self.ballooned),
            "ballooned_pages": self.ballooned,
            "claimed_mib": mib(self.claimed),
            "inflated_pages": counters.inflated,
            "deflated_pages": counters.deflated,
            "popped_pages": counters.popped,
            "reported_pages": counters.reported,
            "released_pages": counters.released,
            "release_failed_pages": counters.release_failed,
            "inflate_buffers": counters.inflate_buffers,
            "released_runs": counters.released_runs,
            "unknown_statistics": counters.unknown_statistics,
            "malformed_chains": counters.malformed_chains,
            "broken_rings": counters.broken_rings,
            "statistics": self.guest_statistics(),
        })
    }

    /// The guest's statistics as Firecracker's API names them: sizes by target and claim, then what the guest sent,
    /// and its age.
    pub fn balloon_statistics(&self) -> Value {
        let (target, actual) = (self.target, self.claimed);
        let mut all = Map::from_iter([
            ("target_pages".to_owned(), target.into()),
            ("actual_pages".to_owned(), actual.into()),
            ("target_mib".to_owned(), (target / FRAMES_PER_MIB).into()),
            ("actual_mib".to_owned(), (actual / FRAMES_PER_MIB).into()),
        ]);
        if let Value::Object(statistics) = self.guest_statistics() {
            all.extend(statistics);
        }
        all.into()
    }

    fn guest_statistics(&self) -> Value {
        let Some(latest) = &self.statistics else {
            return Value::Null;
        };
        let mut values: Map<String, Value> = latest
            .values
            .iter()
            .map(|(_, name, value)| (name.to_owned(), value.into()))
            .collect();
        let age = latest.age(Instant::now());
        values.insert("age_ms".into(), (age.as_millis() as u64).into());
        values.into()
    }
}
