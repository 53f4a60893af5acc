//! Sampling periods, one after the other.

use std::time::{Duration, Instant};

use page_share::Region;

use levy_protocol::link::Activity;

/// Runs sampling periods as ordered.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    running: Option<Running>,
    activity: Activity,
}

/// The period under way.
#[derive(Debug)]
struct Running {
    began: Instant,
    taken: u32,
    /// What the region had counted as touched before it.
    touched_before: u64,
}

impl Sampler {
    /// Ends the period when its time is over and begins the next; `pages` of 0 ends sampling.
    pub(super) fn tick(&mut self, region: &Region, pages: u32, length: Duration) {
        let over = self
            .running
            .as_ref()
            .is_none_or(|running| running.began.elapsed() >= length);
        if !over && pages > 0 {
            return;
        }
        if self.running.take().is_some() {
            let sample = region.finish_sample();
            self.activity.periods += 1;
            self.activity.last = (sample.touched, sample.taken);
        }
        if pages > 0 {
            let touched_before = region.stats().samples_touched;
            let taken = region.start_sample(pages);
            // A guest without a page of its own at this moment has one soon: no reason to wait for a whole period.
            self.running = (taken > 0).then(|| Running {
                began: Instant::now(),
                taken,
                touched_before,
            });
        }
    }

    /// Ends the period under way as if it had never begun.
    pub(super) fn forget(&mut self, region: &Region) {
        if self.running.take().is_some() {
            region.finish_sample();
        }
    }

    /// The last period and the one under way.
    pub(super) fn activity(&self, touched_so_far: u64) -> Activity {
        let running = self.running.as_ref().map_or((0, 0), |running| {
            let touched = touched_so_far.saturating_sub(running.touched_before);
            (
                u32::try_from(touched).unwrap_or(u32::MAX).min(running.taken),
                running.taken,
            )
        });
        Activity {
            running,
            ..self.activity
        }
    }
}

#[cfg(test)]
mod tests {
    use page_share::{AnonymousMemory, Gfn, Options};

    use super::*;

    #[test]
    fn a_period_lasts_until_its_time_is_over_or_nothing_is_to_be_sampled() {
        let memory = AnonymousMemory::new(64).unwrap();
        (0..64).for_each(|at| memory.write_page(at, &[at as u8 + 1; page_share::PAGE_SIZE]));
        let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
        let mut sampler = Sampler::default();
        let hour = Duration::from_secs(3600);
        for _ in 0..2 {
            sampler.tick(&region, 8, hour);
            assert_eq!(
                (sampler.activity(0).periods, sampler.activity(0).running.1),
                (0, 8)
            );
        }
        sampler.tick(&region, 8, Duration::ZERO);
        assert_eq!(
            (sampler.activity(0).periods, sampler.activity(0).running.1),
            (1, 8)
        );
        sampler.tick(&region, 0, hour);
        let ended = sampler.activity(0);
        assert_eq!((ended.periods, ended.last.1, ended.running), (2, 8, (0, 0)));
        sampler.tick(&region, 0, hour);
        assert_eq!(sampler.activity(0).periods, 2, "none was under way");
    }
}
