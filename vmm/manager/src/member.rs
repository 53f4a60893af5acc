//! One guest as the manager knows it.
//!
//! # What a hostile process can say
//! A report is its process's word. It is held against what the kernel counts ([`Counted`]) and against what the process
//! was given: private and compressed pages are part of what is held, memory that a report leaves out is the guest's all
//! the same but for a bounded overhead, a limit is believed lower and never higher, a balloon brings what its guest then
//! holds less, a guest stands still only while its process holds no more than before, and a sample is no larger than the
//! one that was asked for. A report that cannot be true changes nothing.

mod wait;

use std::time::Duration;

use allocator::{
    Balloon, BalloonPace, BalloonWatch, BreakMeter, Claim, Estimate, Estimator, Evidence, GroupId, GuestId,
    Holding, Pages, Sample, Shares, Signal,
};

use crate::limit::{Limit, Voice};
use levy_protocol::link::{Activity, BalloonReport, LimitStatus, PageCounts, Report};
use levy_protocol::process_memory::{Counted, MAPPING_BYTES};
use wait::Wait;

/// A report older than this says nothing about a balloon any more.
const REPORT_LIFETIME: Duration = Duration::from_secs(10);

/// Time over which breaks and returning pages are counted.
const WINDOW: Duration = Duration::from_millis(950);

/// Most that a guest's process needs besides the guest's pages, whatever was counted: a fixed part, MiB.
const OVERHEAD_MIB: u64 = 16;

/// The same for each page of the guest.
const OVERHEAD_PART: f64 = 0.02;

/// Mappings of a guest's process for each page that it shares, where the kernel does not show them: the most that was
/// measured.
const MAPPINGS_PER_SHARED: f64 = 0.3;

/// Room below its limit that a process which waits for memory may have: it gives pages out in batches, and the kernel
/// counts them in batches.
const WAITING_ROOM: Pages = Pages::from_mib(8);

/// The same as a part of its limit.
const WAITING_PART: f64 = 0.125;

/// Largest part of a guest that its balloon may take, in percent: the published limit.
const BALLOON_PERCENT: u64 = 65;

/// What was promised to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pages it always gets.
    pub min: Pages,
    /// Its configured size.
    pub max: Pages,
    /// Its right to memory relative to the others.
    pub shares: Shares,
    /// The group it belongs to.
    pub group: Option<GroupId>,
}

/// A guest: its limits, what it last reported, and what follows from that.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its number.
    pub id: GuestId,
    /// What was promised.
    pub limits: Limits,
    /// Its last report.
    pub report: Report,
    /// How old that is.
    pub age: Duration,
    /// What its process holds of the machine's memory, guest and all.
    pub held: Pages,
    /// Of that, what the process itself does not count against its limit: the kernel's memory for its mappings.
    pub uncounted: Pages,
    /// The size its balloon was told to have.
    pub balloon_asked: Pages,
    /// What it is believed to use.
    pub estimate: Estimate,
    estimator: Estimator,
    periods: u64,
    watch: BalloonWatch,
    pace: BalloonPace,
    breaks: BreakMeter,
    breaks_seen: u64,
    pages_in: u64,
    /// Pages brought back from compression and swap in the last second.
    pub refaulted: Pages,
    /// How long `broken` and `returned` have been counted.
    window: Duration,
    broken: Pages,
    returned: Pages,
    /// What its process says about its limit.
    pub standing: LimitStatus,
    limit: Limit,
    /// Pages in the samples that it is asked for; 0 before it was asked.
    sample: u32,
    wait: Wait,
    /// It was told to compress or swap, and has not reported since.
    pub squeezing: bool,
}

impl Member {
    /// A guest of which nothing was heard yet.
    pub fn new(id: GuestId, limits: Limits) -> Self {
        let estimator = Estimator::default();
        Self {
            id,
            limits,
            report: Report::default(),
            age: Duration::ZERO,
            held: Pages::ZERO,
            uncounted: Pages::ZERO,
            balloon_asked: Pages::ZERO,
            // It holds nothing yet.
            estimate: estimator.estimate(Pages::ZERO, &[]),
            estimator,
            periods: 0,
            watch: BalloonWatch::default(),
            pace: BalloonPace::default(),
            breaks: BreakMeter::default(),
            breaks_seen: 0,
            pages_in: 0,
            refaulted: Pages::ZERO,
            window: Duration::ZERO,
            broken: Pages::ZERO,
            returned: Pages::ZERO,
            standing: LimitStatus::default(),
            limit: Limit::default(),
            sample: 0,
            wait: Wait::default(),
            squeezing: false,
        }
    }

    /// Takes in what the kernel counts of its process.
    pub fn count(&mut self, counted: Counted) {
        let pages = |bytes: u64| Pages::new(bytes.div_ceil(4096));
        self.uncounted = match counted.mappings {
            Some(count) => pages(count.saturating_mul(MAPPING_BYTES)),
            None => {
                let mappings = self.shared().part(MAPPINGS_PER_SHARED).get();
                pages(mappings.saturating_mul(MAPPING_BYTES))
            }
        };
        self.held = pages(counted.held.total()) + self.uncounted;
    }

    /// Takes in what the guest's process reports now, and says whether that can be true: a guest has no more pages than
    /// its size, in whatever state, and none more in its balloon. More than all of it may be written in a second, which
    /// says no more than all of it. A process that counts backwards has restarted its engine or lies; either way its
    /// counters begin anew.
    pub fn on_report(&mut self, mut report: Report) -> bool {
        if !is_possible(&report, self.limits.max) {
            return false;
        }
        report.written_per_second = report.written_per_second.min(self.limits.max.get());
        let grown = |now: u64, before: u64| Pages::new(now.saturating_sub(before));
        self.returned += grown(report.pages_in, self.pages_in);
        self.pages_in = report.pages_in;
        self.broken += grown(report.cow_breaks, self.breaks_seen);
        self.squeezing = false;
        self.breaks_seen = report.cow_breaks;
        self.sampled(report.activity);
        self.report = report;
        self.age = Duration::ZERO;
        true
    }

    /// Lets `elapsed` pass: believes anew what the guest uses and whether its balloon answers. Its samples are asked to
    /// have `sample` pages.
    pub fn pass(&mut self, elapsed: Duration, sample: u32) {
        self.sample = sample;
        self.age = self.age.saturating_add(elapsed);
        self.window = self.window.saturating_add(elapsed);
        let voice = match self.age <= REPORT_LIFETIME {
            true => Voice::Speaks,
            false => Voice::Silent,
        };
        self.limit.pass(self.held, voice, elapsed);
        let waits = voice == Voice::Speaks && self.waits();
        self.wait.pass(waits, &self.report, self.held, elapsed);
        if self.window >= WINDOW {
            self.window = Duration::ZERO;
            // It can neither have shared nor brought back more than all of it.
            self.breaks
                .observe(std::mem::take(&mut self.broken).min(self.limits.max));
            self.refaulted = std::mem::take(&mut self.returned).min(self.limits.max);
        }
        let actual = Pages::new(self.balloon_actual());
        self.watch.observe(self.balloon_asked, actual, elapsed);
        self.pace.observe(self.balloon_asked, actual, self.held, elapsed);
        let signals = [
            Signal {
                evidence: Evidence::Refaulted(self.refaulted),
                age: self.age,
            },
            Signal {
                evidence: Evidence::Written(Pages::new(self.report.written_per_second)),
                age: self.age,
            },
        ];
        self.estimate = self.estimator.estimate(self.private(), &signals);
    }

    /// Pages by state: as reported, but no more private ones than are held. The rest was never touched, or has been given
    /// up since.
    pub fn pages(&self) -> PageCounts {
        let said = self.report.pages;
        let private = said.private.min(self.private().get());
        PageCounts {
            private,
            empty: said.empty.saturating_add(said.private - private),
            ..said
        }
    }

    /// Guest memory by the kernel's count: what is held but for the overhead.
    pub(super) fn memory(&self) -> Pages {
        self.held.less(self.overhead())
    }

    /// Pages of its own memory: what is held, less the overhead and its compressed pages.
    pub fn private(&self) -> Pages {
        self.memory().less(self.store())
    }

    /// Its own pages and those of its compressed store by its own word, as far as it holds so much.
    fn said(&self) -> (Pages, Pages) {
        let held = self.held.less(self.uncounted);
        let private = Pages::new(self.report.pages.private)
            .min(self.limits.max)
            .min(held);
        let store = Pages::new(self.report.store_bytes.div_ceil(4096)).min(self.limits.max);
        (private, store.min(held.less(private)))
    }

    /// Pages backed by common copies or the zero page.
    pub fn shared(&self) -> Pages {
        let pages = &self.report.pages;
        Pages::new(pages.shared.saturating_add(pages.zero)).min(self.limits.max)
    }

    /// Memory that its compressed pages occupy.
    pub fn store(&self) -> Pages {
        self.said().1
    }

    /// What its process needs besides the guest's private and compressed pages, by its own word, which is believed up
    /// to a bound: what is held beyond that is guest memory. What it holds is known for this moment, its pages for up
    /// to a second ago: a guest that grows meanwhile has no larger process for that.
    pub fn overhead(&self) -> Pages {
        let (private, store) = self.said();
        let process = self.held.less(self.uncounted).less(private + store);
        process.min(self.most_overhead()) + self.uncounted
    }

    /// What it can hold at all, its process included: as good as no limit.
    pub fn most(&self) -> Pages {
        self.limits.max + self.most_overhead() + self.uncounted
    }

    fn most_overhead(&self) -> Pages {
        Pages::from_mib(OVERHEAD_MIB) + self.limits.max.part(OVERHEAD_PART)
    }

    /// What it was promised and does not hold, its process included; shared pages are part of the promise.
    pub fn short_of_minimum(&self) -> Pages {
        (self.limits.min.less(self.shared()) + self.overhead()).less(self.held)
    }

    /// Takes in what the guest's process says about its limit.
    pub fn on_limit_status(&mut self, standing: LimitStatus) {
        self.standing = standing;
        if let Some(bytes) = standing.limit_bytes {
            let own = self.limits.min.less(self.shared()) + self.overhead();
            self.limit
                .on_reported(Pages::new(bytes / 4096) + self.uncounted, own);
        }
    }

    /// The most that it may hold by what it was given, before it hears of another limit; what it holds where it has none
    /// yet.
    pub fn allowed(&self) -> Pages {
        self.limit.allowed()
    }

    /// The same where it was given a limit.
    pub fn given(&self) -> Option<Pages> {
        self.limit.sent().map(|_| self.limit.allowed())
    }

    /// The limit that it was sent last.
    pub fn sent_limit(&self) -> Option<Pages> {
        self.limit.sent()
    }

    /// The most that it may come to hold before it hears of another limit: what it is allowed, or what it holds anyway.
    pub fn in_force(&self) -> Pages {
        self.held.max(self.limit.allowed())
    }

    /// What it holds beyond all that it was given.
    pub fn overrun(&self) -> Pages {
        self.limit.overrun(self.held)
    }

    /// Whether it waits for memory: by its word, and only where it has come close to its limit.
    pub fn waits(&self) -> bool {
        let room = |limit: Pages| WAITING_ROOM.max(limit.part(WAITING_PART));
        let near = |limit: Pages| self.held + room(limit) >= limit;
        self.standing.waiting > 0 && self.limit.sent().is_none_or(near)
    }

    /// Whether all its accesses that need memory have waited for some seconds, by its last report.
    pub fn stands_still(&self) -> bool {
        self.wait.is_standstill(self.age)
    }

    /// How long it has waited for memory and got none.
    pub fn waited(&self) -> Duration {
        self.wait.waited()
    }

    /// Sends it a limit; returns that in bytes of what its process counts itself.
    pub fn limit(&mut self, limit: Pages) -> u64 {
        self.limit.send(limit);
        limit.less(self.uncounted).get().saturating_mul(4096)
    }

    /// Whether it is above its limit and gives up no more, because it has nowhere to put its pages, or will not: what
    /// it should give others have to.
    pub fn is_stuck(&self) -> bool {
        self.limit.is_stuck()
    }

    /// Pages that its balloon was asked for and delivers by its pace within `time`.
    pub fn coming(&self, time: Duration) -> Pages {
        match self.balloon(time) {
            Balloon::Answers { size, .. } if self.watch.answers() => {
                let left = size.less(Pages::new(self.balloon_actual()));
                self.pace.within(left.min(self.private()), time)
            }
            _ => Pages::ZERO,
        }
    }

    /// How often its sharing has come apart so far.
    pub fn breaks(&self) -> &BreakMeter {
        &self.breaks
    }

    /// What the allocator is told, `next` before the next round.
    pub fn claim(&self, next: Duration) -> Claim {
        let cold = self.private().less(self.estimate.active);
        Claim {
            group: self.limits.group,
            active: self.estimate.active,
            shared: self.shared(),
            holding: Holding {
                held: self.memory().less(self.coming(next)),
                balloon: self.balloon(next),
                shareable: self.private(),
                compressible: cold,
                swappable: cold,
            },
            ..Claim::new(self.id, self.limits.min, self.limits.max, self.limits.shares)
        }
    }

    /// What its balloon can do within `time`, by what it was asked for: the size it reports lags behind. One that brings
    /// no more has no room, but can be released; a slow one has only as much as its pace fills.
    fn balloon(&self, time: Duration) -> Balloon {
        match &self.report.balloon {
            Some(balloon) if !balloon.unresponsive && self.age <= REPORT_LIFETIME => {
                let most = Pages::new(self.limits.max.get() * BALLOON_PERCENT / 100);
                let room = self.pace.within(most.less(self.balloon_asked), time);
                Balloon::Answers {
                    room: if self.watch.answers() { room } else { Pages::ZERO },
                    size: self.balloon_asked,
                }
            }
            _ => Balloon::Silent,
        }
    }

    fn balloon_actual(&self) -> u64 {
        self.report
            .balloon
            .as_ref()
            .map_or(0, |balloon| balloon.actual_pages)
    }

    fn sampled(&mut self, activity: Activity) {
        // More than was asked for would be more certain than it is.
        let most = self.sample;
        let sample = |(touched, drawn): (u32, u32)| match drawn > most && most > 0 {
            true => Sample::new(
                (u64::from(touched) * u64::from(most) / u64::from(drawn)) as u32,
                most,
            ),
            false => Sample::new(touched, drawn),
        };
        if activity.periods != self.periods {
            self.periods = activity.periods;
            self.estimator.close_period(sample(activity.last));
        }
        self.estimator.run(sample(activity.running));
    }
}

/// Whether a guest of that size can have these numbers of pages in each state, and in its balloon.
fn is_possible(report: &Report, size: Pages) -> bool {
    let PageCounts {
        private,
        shared,
        zero,
        compressed,
        swapped,
        ballooned,
        empty,
    } = report.pages;
    let fits = |balloon: &BalloonReport| balloon.target_pages.max(balloon.actual_pages) <= size.get();
    let pages_fit = [shared, zero, compressed, swapped, ballooned, empty]
        .iter()
        .try_fold(private, |sum, &count| sum.checked_add(count))
        .is_some_and(|sum| sum <= size.get());
    pages_fit && report.balloon.as_ref().is_none_or(fits)
}

#[cfg(test)]
mod tests;
