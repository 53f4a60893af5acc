//! One simulated guest: what it does, and where its pages are.

use allocator::{
    Balloon, BalloonWatch, Claim, Estimator, Evidence, GroupId, GuestId, Holding, Pages, Sample, Shares,
    Signal,
};
use std::time::Duration;

use crate::cost::COSTS;
use crate::dice::Dice;
use crate::fleet_file::{BalloonPart, Cheat, GuestPart, Phase};

/// A sampling period, in seconds.
pub(crate) const PERIOD_S: u32 = 30;
/// Published: no more than this part of a guest goes to its balloon.
const MOST_BALLOON: f64 = 0.65;
/// Compressed pages need a third of their size.
const COMPRESSION: u64 = 3;
/// Pages per second that a driver moves.
const DRIVER_PAGES_S: u64 = 64 * 256;
/// Of the pages taken while cold, this part is wanted back at once: sampling does not know single pages.
const MISTAKEN: f64 = 0.05;

/// Where a guest's pages are. Their sum is what it has and the host knows of, balloon aside.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    pub(crate) held: u64,
    pub(crate) shared: u64,
    pub(crate) compressed: u64,
    pub(crate) swapped: u64,
}

impl Place {
    pub(crate) fn present(&self) -> u64 {
        self.held + self.shared + self.compressed + self.swapped
    }
}

/// What it wants at a moment, in pages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Want {
    pub(crate) active: u64,
    pub(crate) used: u64,
    pub(crate) zero: u64,
    growth: u64,
}

pub(crate) struct Guest {
    pub(crate) name: String,
    pub(crate) kind: usize,
    pub(crate) id: GuestId,
    pub(crate) group: Option<GroupId>,
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) overhead: u64,
    pub(crate) shares: u32,
    duplicate: f64,
    breaks_s: u64,
    balloon_part: BalloonPart,
    balloon_after_s: u32,
    pub(crate) cheat: Cheat,
    phases: Vec<Phase>,
    /// The size and the time of everything it does, compared with others of its kind.
    scale: f64,
    dice: Dice,
    /// Where in a sampling period it starts.
    offset: u32,

    pub(crate) place: Place,
    pub(crate) balloon: u64,
    pub(crate) asked: u64,
    watch: BalloonWatch,
    pub(crate) want: Want,
    leaked: f64,
    pub(crate) blocked: bool,
    mistaken: u64,
    /// Pages that sharing was tried on in vain since they last changed.
    tried: u64,

    pub(crate) estimator: Estimator,
    /// For each sampled page: its place in the guest, hottest first, 0 to 1.
    sample: Vec<f64>,
    hottest: f64,
    /// Microseconds lost in the last second, and in all.
    pub(crate) lost: f64,
    pub(crate) lost_sum: f64,
    /// Shares broken in the last second, and since the host last asked.
    pub(crate) broken: u64,
    broken_since: u64,
}

impl Guest {
    pub(crate) fn new(part: &GuestPart, kind: usize, number: u32, dice: &mut Dice) -> Self {
        let mut dice = dice.fork();
        let scale = dice.around_one(part.spread);
        let pages = |mib: u64| (mib as f64 * 256.0 * scale) as u64;
        let offset = (dice.unit() * f64::from(PERIOD_S)) as u32;
        Self {
            name: if part.count > 1 {
                format!("{}-{number}", part.name)
            } else {
                part.name.clone()
            },
            kind,
            id: GuestId::new(0),
            group: None,
            min: pages(part.min_mib),
            max: pages(part.max_mib),
            overhead: part.overhead_mib * 256,
            shares: part.shares,
            duplicate: part.duplicate,
            breaks_s: part.breaks_s,
            balloon_part: if part.cheat == Cheat::Holds {
                BalloonPart::Dead
            } else {
                part.balloon
            },
            balloon_after_s: part.balloon_after_s,
            cheat: part.cheat,
            phases: part.phases.clone(),
            scale,
            dice,
            offset,
            place: Place::default(),
            balloon: 0,
            asked: 0,
            watch: BalloonWatch::default(),
            want: Want::default(),
            leaked: 0.0,
            blocked: false,
            mistaken: 0,
            tried: 0,
            estimator: Estimator::default(),
            sample: Vec::new(),
            hottest: 0.0,
            lost: 0.0,
            lost_sum: 0.0,
            broken: 0,
            broken_since: 0,
        }
    }

    /// The second `now` of its trace.
    fn trace(&mut self, now: u32) {
        let at = |phase: &Phase| (f64::from(phase.at_s) * self.scale) as u32;
        let Some(phase) = self.phases.iter().rev().find(|phase| at(phase) <= now) else {
            return;
        };
        let pages = |mib: u64| (mib as f64 * 256.0 * self.scale) as u64;
        let asleep = phase
            .burst_s
            .is_some_and(|burst| ((now - at(phase)) / burst) % 2 == 1);
        self.leaked += phase.leak_mib_s * 256.0;
        let active = if asleep { 0 } else { pages(phase.active_mib) };
        let used = phase.used_mib.map_or(active, pages).max(active) + self.leaked as u64;
        let all = self.cheat == Cheat::Holds;
        self.want = Want {
            active,
            used: if all { self.max } else { used.min(self.max) },
            zero: pages(phase.zero_mib),
            growth: phase.growth_mib_s * 256,
        };
    }

    /// Lives through one second. `free` is what the host has free, before and after.
    pub(crate) fn live(&mut self, now: u32, free: &mut u64) {
        self.trace(now);
        self.lost = 0.0;
        let held = self.place.held;
        self.move_balloon(now);
        *free += held - self.place.held;
        self.break_sharing(free);
        self.bring_back(free);
        self.grow(free);
        self.suffer();
        self.lost_sum += self.lost.min(1e6);
        debug_assert!(self.place.present() + self.balloon <= self.max, "{}", self.name);
    }

    fn move_balloon(&mut self, now: u32) {
        if self.balloon_part == BalloonPart::Dead || now < self.balloon_after_s {
            self.watch.observe(
                Pages::new(self.asked),
                Pages::new(self.balloon),
                Duration::from_secs(1),
            );
            return;
        }
        let step = self.asked.abs_diff(self.balloon).min(DRIVER_PAGES_S);
        if self.asked < self.balloon {
            self.balloon -= step;
        } else {
            // What the guest has free and the host backs goes first, then what has no memory behind it, then what it
            // uses least.
            self.balloon += step;
            let room = self.max - self.balloon;
            let over = self.place.present().saturating_sub(self.want.used.min(room));
            let gone = over.min(step);
            let held = gone.min(self.place.held);
            self.place.held -= held;
            let swapped = (gone - held).min(self.place.swapped);
            self.place.swapped -= swapped;
            let compressed = (gone - held - swapped).min(self.place.compressed);
            self.place.compressed -= compressed;
            self.place.shared -= gone - held - swapped - compressed;
        }
        self.lost += step as f64 * COSTS.balloon;
        self.watch.observe(
            Pages::new(self.asked),
            Pages::new(self.balloon),
            Duration::from_secs(1),
        );
    }

    /// Pages that could be shared: duplicates, and zero pages.
    fn equal(&self) -> u64 {
        let whole = self.place.held + self.place.shared;
        ((whole as f64 * self.duplicate) as u64 + self.want.zero).min(whole)
    }

    fn break_sharing(&mut self, free: &mut u64) {
        let gone = self.place.shared.saturating_sub(self.equal());
        let written = if self.want.active > 0 { self.breaks_s } else { 0 };
        let broken = (gone + written).min(self.place.shared).min(*free);
        self.place.shared -= broken;
        self.place.held += broken;
        *free -= broken;
        self.broken = broken;
        self.broken_since += broken;
        self.lost += broken as f64 * COSTS.cow_break;
    }

    /// Touches what it uses and the host has put away.
    fn bring_back(&mut self, free: &mut u64) {
        let away = self.place.compressed + self.place.swapped;
        let missing = self
            .want
            .active
            .saturating_sub(self.place.held + self.place.shared);
        let touched = (missing as f64 * COSTS.touches_s).ceil() as u64 + self.mistaken;
        self.mistaken = 0;
        let back = touched.min(away).min(*free);
        let compressed = back.min(self.place.compressed);
        self.place.compressed -= compressed;
        self.place.swapped -= back - compressed;
        self.place.held += back;
        *free -= back;
        self.lost += compressed as f64 * COSTS.decompress + (back - compressed) as f64 * COSTS.swap_in;
    }

    fn grow(&mut self, free: &mut u64) {
        let wanted = self.want.used.min(self.max - self.balloon);
        let growth = wanted.saturating_sub(self.place.present()).min(self.want.growth);
        let growth = if self.blocked { 0 } else { growth.min(*free) };
        self.place.held += growth;
        *free -= growth;
        self.tried = self.tried.min(self.place.held);
    }

    /// Reads from its own disk what its balloon, or a host without memory, leaves no room for.
    fn suffer(&mut self) {
        let missing = self.want.active.saturating_sub(self.place.present());
        self.lost += missing as f64 * COSTS.touches_s * COSTS.guest_io;
    }

    /// Draws a sample when a period begins, counts the touches of this second, and closes the period at its end.
    pub(crate) fn sampled(&mut self, now: u32, size: u32) {
        let second = (now + self.offset) % PERIOD_S;
        if second == 0 || self.sample.is_empty() {
            self.sample = (0..size).map(|_| self.dice.unit()).collect();
            self.hottest = 0.0;
        }
        let sweeps = self.cheat == Cheat::Sweeps && second == PERIOD_S - 1;
        let fraction = if sweeps { 1.0 } else { self.active_fraction() };
        self.hottest = self.hottest.max(fraction);
        let touched = self.sample.iter().filter(|&&place| place < self.hottest).count() as u32;
        let sample = Sample::new(touched, size);
        if second == PERIOD_S - 1 {
            self.estimator.close_period(sample);
            self.sample.clear();
        } else {
            self.estimator.run(sample);
        }
    }

    /// Private pages, and the memory its compressed pages occupy.
    pub(crate) fn charged(&self) -> u64 {
        self.place.held + self.place.compressed.div_ceil(COMPRESSION)
    }

    /// Shares broken since the last call.
    pub(crate) fn take_broken(&mut self) -> u64 {
        std::mem::take(&mut self.broken_since)
    }

    pub(crate) fn answers(&self) -> bool {
        self.watch.answers()
    }

    /// The part of its private pages that it really uses.
    pub(crate) fn active_fraction(&self) -> f64 {
        let resident = self.place.held + self.place.shared;
        (self.want.active as f64 / resident.max(1) as f64).min(1.0)
    }

    pub(crate) fn claim(&self) -> Claim {
        let private = Pages::new(self.place.held);
        let said = [
            Signal {
                evidence: Evidence::GuestStatistics(private),
                age: Duration::from_secs(1),
            },
            Signal {
                evidence: Evidence::GuestPressure(1.0),
                age: Duration::from_secs(1),
            },
        ];
        let signals: &[Signal] = if self.cheat == Cheat::Lies { &said } else { &[] };
        let most = (self.max as f64 * MOST_BALLOON) as u64;
        let balloon = if self.watch.answers() {
            Balloon::Answers {
                room: Pages::new(most.saturating_sub(self.asked)),
                size: Pages::new(self.asked),
            }
        } else {
            Balloon::Silent
        };
        Claim {
            group: self.group,
            active: self.estimator.estimate(private, signals).active,
            shared: Pages::new(self.place.shared),
            holding: Holding {
                held: Pages::new(self.charged()),
                balloon,
                shareable: Pages::new(self.place.held.saturating_sub(self.tried)),
                compressible: private,
                swappable: private,
            },
            ..Claim::new(
                self.id,
                Pages::new(self.min),
                Pages::new(self.max),
                Shares::new(self.shares),
            )
        }
    }

    /// The host tries `pages` private pages for sharing; returns how many it could share.
    pub(crate) fn share(&mut self, pages: u64) -> u64 {
        let tried = pages.min(self.place.held);
        // Equal pages are spread evenly over those not tried yet.
        let untried = self.place.held.saturating_sub(self.tried).max(1);
        let equal = self.equal().saturating_sub(self.place.shared);
        let found = (equal as f64 * (tried as f64 / untried as f64).min(1.0)) as u64;
        let found = found.min(tried);
        self.place.held -= found;
        self.place.shared += found;
        self.tried = (self.tried + tried - found).min(self.place.held);
        if equal == 0 {
            self.tried = self.place.held;
        }
        found
    }

    /// Background scanning starts over: pages may have changed.
    pub(crate) fn forget_tried(&mut self) {
        self.tried = 0;
    }

    /// Pages really available to be put away out of `pages`; some turn out to be in use.
    pub(crate) fn put_away(&mut self, pages: u64) -> u64 {
        let gone = pages.min(self.place.held);
        let cold = self
            .place
            .held
            .saturating_sub(self.want.active.saturating_sub(self.place.shared));
        self.mistaken += (gone.min(cold) as f64 * MISTAKEN) as u64;
        self.place.held -= gone;
        gone
    }
}
