//! One guest as the manager knows it.

use std::time::Duration;

use allocator::{
    Balloon, BalloonWatch, BreakMeter, Claim, Estimate, Estimator, Evidence, GroupId, GuestId, Holding,
    Pages, Sample, Shares, Signal,
};

use crate::link::{Activity, Report, Standing};

/// A report older than this says nothing about a balloon any more.
const REPORT_LIFETIME: Duration = Duration::from_secs(10);

/// Time over which breaks and returning pages are counted.
const WINDOW: Duration = Duration::from_millis(950);

/// A process above its limit that gets no closer to it for so long can give up no more.
const STUCK: Duration = Duration::from_secs(2);

/// Beyond its limit by so much a process makes room, and so much less than before is closer to it.
const NEARER: Pages = Pages::new(256);

/// Most that a guest's process needs beside the guest's pages, whatever was counted: a fixed part, MiB.
const OVERHEAD_MIB: u64 = 16;

/// The same for each page of the guest.
const OVERHEAD_PART: f64 = 0.02;

/// Largest part of a guest that its balloon may take, in percent: the published limit.
const BALLOON_PERCENT: u64 = 65;

/// What was promised to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pages it always gets.
    pub min: Pages,
    /// Its configured size.
    pub max: Pages,
    /// Its right to memory beside the others.
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
    /// The size its balloon was told to have.
    pub balloon_asked: Pages,
    /// What it is believed to use.
    pub estimate: Estimate,
    estimator: Estimator,
    periods: u64,
    watch: BalloonWatch,
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
    pub standing: Standing,
    /// The limit it was sent last.
    limit: Option<Pages>,
    /// The least that it held since it was above its limit, and for how long it has held no less.
    above_limit: Option<(Pages, Duration)>,
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
            balloon_asked: Pages::ZERO,
            estimate: estimator.estimate(limits.max, &[]),
            estimator,
            periods: 0,
            watch: BalloonWatch::default(),
            breaks: BreakMeter::default(),
            breaks_seen: 0,
            pages_in: 0,
            refaulted: Pages::ZERO,
            window: Duration::ZERO,
            broken: Pages::ZERO,
            returned: Pages::ZERO,
            standing: Standing::default(),
            limit: None,
            above_limit: None,
            squeezing: false,
        }
    }

    /// Takes in what the guest's process reports now. A process that counts backwards has restarted its engine or
    /// lies; either way its counters begin anew.
    pub fn hear(&mut self, report: Report) {
        let grown = |now: u64, before: u64| Pages::new(now.saturating_sub(before));
        self.returned += grown(report.pages_in, self.pages_in);
        self.pages_in = report.pages_in;
        self.broken += grown(report.cow_breaks, self.breaks_seen);
        self.squeezing = false;
        self.breaks_seen = report.cow_breaks;
        self.sampled(report.activity);
        self.report = report;
        self.age = Duration::ZERO;
    }

    /// Lets `elapsed` pass: believes anew what the guest uses and whether its balloon answers.
    pub fn pass(&mut self, elapsed: Duration) {
        self.age = self.age.saturating_add(elapsed);
        self.window = self.window.saturating_add(elapsed);
        self.above_limit =
            self.limit
                .filter(|limit| self.held > *limit + NEARER)
                .map(|_| match self.above_limit {
                    Some((least, since)) if self.held + NEARER > least => {
                        (least, since.saturating_add(elapsed))
                    }
                    _ => (self.held, Duration::ZERO),
                });
        if self.window >= WINDOW {
            self.window = Duration::ZERO;
            self.breaks.observe(std::mem::take(&mut self.broken));
            self.refaulted = std::mem::take(&mut self.returned);
        }
        let actual = self
            .report
            .balloon
            .as_ref()
            .map_or(0, |balloon| balloon.actual_pages);
        self.watch
            .observe(self.balloon_asked, Pages::new(actual), elapsed);
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

    /// Pages of its own memory.
    pub fn private(&self) -> Pages {
        Pages::new(self.report.pages.private).min(self.limits.max)
    }

    /// Pages backed by common copies or the zero page.
    pub fn shared(&self) -> Pages {
        let pages = &self.report.pages;
        Pages::new(pages.shared.saturating_add(pages.zero)).min(self.limits.max)
    }

    /// Memory that its compressed pages occupy.
    pub fn store(&self) -> Pages {
        Pages::new(self.report.store_bytes.div_ceil(4096)).min(self.limits.max)
    }

    /// What its process needs beside the guest's private and compressed pages. What it holds is known for this moment,
    /// its pages for up to a second ago: a guest that grows meanwhile has no larger process for that.
    pub fn overhead(&self) -> Pages {
        self.held
            .less(self.private() + self.store())
            .min(self.most_overhead())
    }

    /// What it can hold at all, its process included: as good as no limit.
    pub fn most(&self) -> Pages {
        self.limits.max + self.most_overhead()
    }

    fn most_overhead(&self) -> Pages {
        Pages::from_mib(OVERHEAD_MIB) + self.limits.max.part(OVERHEAD_PART)
    }

    /// What it was promised and does not hold, its process included; shared pages are part of the promise.
    pub fn short_of_minimum(&self) -> Pages {
        (self.limits.min.less(self.shared()) + self.overhead()).less(self.held)
    }

    /// Takes in what the guest's process says about its limit.
    pub fn stand(&mut self, standing: Standing) {
        self.standing = standing;
    }

    /// The most that it may hold before it hears of another limit: what it holds where it has none yet.
    pub fn in_force(&self) -> Pages {
        let heard = self
            .standing
            .limit_bytes
            .map(|bytes| Pages::new(bytes / 4096).min(self.most()));
        [self.limit, heard]
            .into_iter()
            .flatten()
            .fold(self.held, Pages::max)
    }

    /// Sends it a limit.
    pub fn limit(&mut self, limit: Pages) {
        self.limit = Some(limit);
    }

    /// Whether it is above its limit and gives up no more, because it has nowhere to put its pages, or will not: what
    /// it should give others have to.
    pub fn is_stuck(&self) -> bool {
        self.above_limit.is_some_and(|(_, since)| since >= STUCK)
    }

    /// Pages that its balloon was asked for and is about to deliver.
    pub fn inflating(&self) -> Pages {
        match self.balloon() {
            Balloon::Answers { size, .. } if self.watch.answers() => {
                size.less(Pages::new(self.balloon_actual())).min(self.private())
            }
            _ => Pages::ZERO,
        }
    }

    /// How often its sharing has come apart so far.
    pub fn breaks(&self) -> &BreakMeter {
        &self.breaks
    }

    /// What the allocator is told.
    pub fn claim(&self) -> Claim {
        let cold = self.private().less(self.estimate.active);
        Claim {
            group: self.limits.group,
            active: self.estimate.active,
            shared: self.shared(),
            holding: Holding {
                held: (self.private() + self.store()).less(self.inflating()),
                balloon: self.balloon(),
                shareable: self.private(),
                compressible: cold,
                swappable: cold,
            },
            ..Claim::new(self.id, self.limits.min, self.limits.max, self.limits.shares)
        }
    }

    /// What its balloon can do, by what it was asked for: the size it reports lags behind. One that brings no more has
    /// no room, but can be released.
    fn balloon(&self) -> Balloon {
        match &self.report.balloon {
            Some(balloon) if !balloon.unresponsive && self.age <= REPORT_LIFETIME => {
                let most = Pages::new(self.limits.max.get() * BALLOON_PERCENT / 100);
                let room = most.less(self.balloon_asked);
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
        let sample = |(touched, drawn)| Sample::new(touched, drawn);
        if activity.periods != self.periods {
            self.periods = activity.periods;
            self.estimator.close_period(sample(activity.last));
        }
        self.estimator.run(sample(activity.running));
    }
}
