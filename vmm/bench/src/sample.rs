//! One second of a testbed: what the manager knows of the host and of every guest.

use serde::Serialize;

use levy_protocol::api::{GuestView, HostView, MemoryView};

/// Everything at one moment. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds since the testbed was opened.
    pub seconds: f64,
    /// The host's state: high, soft, hard, low; none before the manager's first round.
    pub state: Option<String>,
    /// The budget in force.
    pub budget_bytes: u64,
    /// What is used of it: guests' processes, pools, the manager.
    pub used_bytes: u64,
    /// Of that, the pools of common copies, each page once.
    pub pools_bytes: u64,
    /// Of that, the manager's process (which is the bench's).
    pub manager_bytes: u64,
    /// Every guest that the manager knows, in the order of admission.
    pub guests: Vec<GuestSample>,
}

/// One guest at one moment. Sizes are bytes; where its pages are is its process's report of at most a second ago.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GuestSample {
    /// Its name.
    pub name: String,
    /// Private memory that it should hold, by the plan in force.
    pub target_bytes: Option<u64>,
    /// What it costs the budget: anonymous memory and page tables of its process, by the kernel's count.
    pub held_bytes: u64,
    /// What of its memory is in the machine's: private, shared and zero pages.
    pub resident_bytes: u64,
    /// Where its pages are.
    #[serde(flatten)]
    pub memory: MemoryView,
    /// The balloon's size that the manager asks for.
    pub balloon_asked_bytes: u64,
    /// Private memory that it is believed to use.
    pub active_bytes: u64,
    /// The same as a part of its private memory, 0 to 1.
    pub active: f64,
    /// Pages it may still grow by, where growth is gated.
    pub growth_credit_pages: Option<u64>,
    /// Pages brought back from compression and swap since it started.
    pub pages_in: u64,
    /// Common copies that it wrote to since it started.
    pub cow_breaks: u64,
    /// CPU used by its memory engine since it started, microseconds.
    pub engine_cpu_us: u64,
    /// Operations of the run that was begun last, by its last progress line.
    pub ops: u64,
    /// Operations per second of that line.
    pub rate: f64,
}

impl Sample {
    /// A sample from the manager's own views.
    pub fn of(seconds: f64, host: &HostView, guests: &[GuestView]) -> Self {
        let spent = host.spent;
        Self {
            seconds,
            state: host.state.clone(),
            budget_bytes: host.settings.budget_bytes,
            used_bytes: spent.guests_bytes + spent.pools_bytes + spent.manager_bytes,
            pools_bytes: spent.pools_bytes,
            manager_bytes: spent.manager_bytes,
            guests: guests.iter().map(GuestSample::of).collect(),
        }
    }

    /// The guest called `name`, if the manager knows it at that moment.
    pub fn guest(&self, name: &str) -> Option<&GuestSample> {
        self.guests.iter().find(|guest| guest.name == name)
    }
}

/// A size over time, in seconds and MiB, from the samples that have one.
pub(crate) fn curve(samples: &[Sample], of: impl Fn(&Sample) -> Option<u64>) -> Vec<(f64, f64)> {
    let point = |sample: &Sample| Some((sample.seconds, of(sample)? as f64 / f64::from(1 << 20)));
    samples.iter().filter_map(point).collect()
}

/// For people, on one line.
impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        let sum = |of: fn(&GuestSample) -> u64| mib(self.guests.iter().map(of).sum());
        let mut text = format!(
            "{:.0} s: {} guests, {} of {} MiB used ({}), shared {} zero {} ballooned {} compressed {} swapped {} MiB",
            self.seconds,
            self.guests.len(),
            mib(self.used_bytes),
            mib(self.budget_bytes),
            self.state.as_deref().unwrap_or("-"),
            sum(|guest| guest.memory.shared_bytes),
            sum(|guest| guest.memory.zero_bytes),
            sum(|guest| guest.memory.ballooned_bytes),
            sum(|guest| guest.memory.compressed_bytes),
            sum(|guest| guest.memory.swapped_bytes),
        );
        let rate: f64 = self.guests.iter().map(|guest| guest.rate).sum();
        if rate > 0.0 {
            text += &format!(", {rate:.0} operations/s");
        }
        f.write_str(&text)
    }
}

impl GuestSample {
    fn of(view: &GuestView) -> Self {
        let memory = view.memory;
        Self {
            name: view.name.clone(),
            target_bytes: view.target.as_ref().map(|target| target.private_bytes),
            held_bytes: view.held_bytes,
            resident_bytes: memory.private_bytes + memory.shared_bytes + memory.zero_bytes,
            memory,
            balloon_asked_bytes: view.balloon.map_or(0, |balloon| balloon.asked_bytes),
            active_bytes: view.activity.active_bytes,
            active: view.activity.fraction,
            growth_credit_pages: view.growth_credit_pages,
            pages_in: view.counters.pages_in,
            cow_breaks: view.counters.cow_breaks,
            engine_cpu_us: view.counters.engine_cpu_us,
            ops: 0,
            rate: 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_pages_are_lies_beside_a_guests_other_figures() {
        let sample = serde_json::to_value(GuestSample::default()).unwrap();
        assert_eq!([&sample["ballooned_bytes"], &sample["held_bytes"]], [0, 0]);
    }
}
