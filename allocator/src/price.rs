//! The price search: one pool's pages divided among its members, exactly.
//!
//! The definition is min-funding revocation, page by page: member i values its p-th page at S_i / cost_i(p), where
//! cost_i(p) = min(p, A_i) + k max(0, p - A_i), and pages are taken from the member that values its last page least.
//! The pages that remain are those whose cost per share is at most some **level** x (the price is 1/x), up to ties at x
//! itself. So it is enough to find x, where every member holds the closed form p_i(x) rounded down, and to deal the
//! few pages that cost exactly as much as the last one affordable.
//!
//! All arithmetic is on integers. Costs are in units in which an idle page costs 10^6 and an active one
//! 10^6 (1 - τ), at most 2^60 for a member; levels are in 2^-32 units per share, at most 2^93. Ties go to the member
//! that stands first.

use std::cmp::Ordering;

use crate::Claim;
use crate::tax::{IDLE, Tax};

/// One claimant of a pool, a guest or a whole group. `min <= max`, `active <= max`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Member {
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) active: u64,
    pub(crate) shares: u64,
}

impl Member {
    pub(crate) fn of_claim(claim: &Claim) -> Self {
        let max = claim.max.less(claim.shared).get();
        Self {
            min: claim.min.less(claim.shared).get(),
            max,
            active: claim.active.get().min(max),
            shares: u64::from(claim.shares.get()),
        }
    }

    /// What `pages` cost where an active page costs `active_cost`.
    pub(crate) fn cost(&self, pages: u64, active_cost: u64) -> u64 {
        pages.min(self.active) * active_cost + pages.saturating_sub(self.active) * IDLE
    }

    /// Whether its minimum costs more than its shares buy in a pool that cleared so.
    pub(crate) fn exceeds(&self, clearing: Clearing, tax: Tax) -> bool {
        let level = match clearing {
            Clearing::Plenty => return false,
            Clearing::Unsold => return true,
            Clearing::At(level) => level,
        };
        let cost = u128::from(self.cost(self.min, tax.active_cost()));
        cost << LEVEL_BITS > u128::from(self.shares) * level
    }

    /// The most pages within the limits that cost at most `level` per share.
    fn afford(&self, level: Level, active_cost: u64) -> u64 {
        let money = u64::try_from((u128::from(self.shares) * level) >> LEVEL_BITS).unwrap_or(u64::MAX);
        let active = self.active * active_cost;
        let pages = if money <= active {
            money / active_cost
        } else {
            self.active + (money - active) / IDLE
        };
        pages.clamp(self.min, self.max)
    }
}

/// Cost per share, in 2^-32 units.
pub(crate) type Level = u128;

/// How a pool's pages were divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clearing {
    /// Every member has its maximum.
    Plenty,
    /// No member has a page beyond its minimum, so that none was sold and there is no price.
    Unsold,
    /// The dearest page that was sold costs this much per share.
    At(Level),
}

impl Clearing {
    /// The price in shares per active page: 0 without scarcity, none where no page was sold.
    pub(crate) fn price(self, tax: Tax) -> Option<f64> {
        match self {
            Self::Plenty => Some(0.0),
            Self::Unsold => None,
            Self::At(level) => Some(1.0 / pages_per_share(level, tax)),
        }
    }
}

/// Levels resolve single units of cost for up to 2^32 shares: one level up buys a member at most one page.
const LEVEL_BITS: u32 = 32;

/// A level as whole active pages per share: the inverse of the price.
fn pages_per_share(level: Level, tax: Tax) -> f64 {
    level as f64 / (1_u64 << LEVEL_BITS) as f64 / tax.active_cost() as f64
}

/// What was found of a level: how many pages all members together afford at it.
#[derive(Clone, Copy, Debug)]
struct Probe {
    level: Level,
    pages: u64,
    /// Pages more per level: what members between their limits buy. For the ends of the search, where it is not
    /// needed, 0.
    slope: f64,
}

/// A page that costs about as much as the last one affordable.
#[derive(Clone, Copy, Debug)]
struct Marginal {
    cost: u64,
    shares: u64,
    member: u32,
}

impl Marginal {
    /// Cheapest per share first, then the member that stands first.
    fn order(&self, other: &Self) -> Ordering {
        let mine = u128::from(self.cost) * u128::from(other.shares);
        let theirs = u128::from(other.cost) * u128::from(self.shares);
        mine.cmp(&theirs).then(self.member.cmp(&other.member))
    }
}

impl Marginal {
    /// The level at which it is affordable.
    fn level(&self) -> Level {
        (u128::from(self.cost) << LEVEL_BITS).div_ceil(u128::from(self.shares))
    }
}

/// Marginal pages are dealt singly once there are no more of them than this, or than members.
const FEW: usize = 32;

/// The search with its scratch memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct PriceSearch {
    marginal: Vec<Marginal>,
}

impl PriceSearch {
    /// Makes room for pools of up to `members`, after which [`PriceSearch::divide`] does not allocate.
    pub(crate) fn reserve(&mut self, members: usize) {
        self.marginal.clear();
        self.marginal.reserve(members.max(FEW));
    }

    /// Divides `memory` pages among `members` at `tax` into `pages`; returns how the pool cleared.
    ///
    /// `memory` is at least the sum of the minimums. The sum of `pages` is `memory` or, where that is less, the sum
    /// of the maximums.
    pub(crate) fn divide(
        &mut self,
        members: &[Member],
        tax: Tax,
        memory: u64,
        pages: &mut [u64],
    ) -> Clearing {
        let active_cost = tax.active_cost();
        let (low, high, _) = narrow(members, active_cost, memory);
        for (pages, member) in pages.iter_mut().zip(members) {
            *pages = member.afford(low.level, active_cost);
        }
        if high.pages <= memory {
            return Clearing::Plenty;
        }
        if low.pages == memory {
            return match low.level {
                0 => Clearing::Unsold,
                level => Clearing::At(level),
            };
        }
        let dearest = self.deal(members, active_cost, (high.level, memory - low.pages), pages);
        Clearing::At(dearest.max(low.level))
    }

    /// Deals `count` of the pages affordable at `level` but not held yet, cheapest first; returns the level of the
    /// dearest.
    fn deal(
        &mut self,
        members: &[Member],
        active_cost: u64,
        (level, count): (Level, u64),
        pages: &mut [u64],
    ) -> Level {
        self.marginal.clear();
        for (index, (member, &held)) in members.iter().zip(&*pages).enumerate() {
            let afford = member.afford(level, active_cost);
            self.marginal.extend((held..afford).map(|page| Marginal {
                cost: member.cost(page + 1, active_cost),
                shares: member.shares,
                member: index as u32,
            }));
        }
        let count = count as usize;
        if count < self.marginal.len() {
            self.marginal.select_nth_unstable_by(count, Marginal::order);
        }
        let mut dearest = 0;
        for page in self.marginal.iter().take(count) {
            pages[page.member as usize] += 1;
            dearest = dearest.max(page.level());
        }
        dearest
    }
}

/// The last level at which the members afford no more than the memory, and the first at which they afford more, up to a
/// few pages; the same one twice where the memory suffices for every maximum. And how many probes that took.
fn narrow(members: &[Member], active_cost: u64, memory: u64) -> (Probe, Probe, u32) {
    let (mut low, mut high) = extremes(members, active_cost);
    if high.pages <= memory {
        low = high;
    }
    let few = members.len().max(FEW) as u64;
    let mut steps = 0;
    while low.pages < memory && high.pages - low.pages > few && high.level - low.level > 1 {
        let aim = Aim {
            memory,
            few,
            step: steps,
        };
        let probe = probe(members, active_cost, next_level(low, high, aim));
        if probe.pages <= memory {
            low = probe;
        } else {
            high = probe;
        }
        steps += 1;
    }
    (low, high, steps)
}

/// The level at which every member is at its minimum, and one at which every member is at its maximum.
fn extremes(members: &[Member], active_cost: u64) -> (Probe, Probe) {
    let mut low = Probe {
        level: 0,
        pages: 0,
        slope: 0.0,
    };
    let (mut most, mut dearest) = (0, 0.0_f64);
    for member in members {
        low.pages += member.min;
        most += member.max;
        dearest = dearest.max(member.cost(member.max, active_cost) as f64 / member.shares as f64);
    }
    // Twice the dearest last page covers what the floating-point quotient may have lost.
    let high = Probe {
        level: (dearest * (1_u64 << LEVEL_BITS) as f64) as Level * 2 + (1 << LEVEL_BITS),
        pages: most,
        slope: 0.0,
    };
    (low, high)
}

fn probe(members: &[Member], active_cost: u64, level: Level) -> Probe {
    let (mut sum, mut active, mut idle) = (0, 0, 0);
    for member in members {
        let pages = member.afford(level, active_cost);
        sum += pages;
        if pages > member.min && pages < member.max {
            if pages < member.active {
                active += member.shares;
            } else {
                idle += member.shares;
            }
        }
    }
    let slope = active as f64 / active_cost as f64 + idle as f64 / IDLE as f64;
    Probe {
        level,
        pages: sum,
        slope: slope / (1_u64 << LEVEL_BITS) as f64,
    }
}

/// What a search step goes for.
#[derive(Clone, Copy)]
struct Aim {
    memory: u64,
    few: u64,
    step: u32,
}

/// A level strictly between `low` and `high`: two steps along the slope from the nearer end, then a bisection, and so
/// on.
///
/// The sum of all pages is piecewise linear in the level, so a step along the slope ends the search within a segment at
/// once; bisection bounds the number of steps where there are many segments. Floating point here only chooses where to
/// look.
fn next_level(low: Probe, high: Probe, aim: Aim) -> Level {
    let span = high.level - low.level;
    // Aim a little past the memory, so that both ends close in.
    let slack = aim.few as f64 / 4.0;
    let short = (aim.memory - low.pages) as f64;
    let over = (high.pages - aim.memory) as f64;
    let from_low = (short + slack) / low.slope;
    let from_high = (over + slack) / high.slope;
    let near = if short < over {
        from_low
    } else {
        span as f64 - from_high
    };
    let step = if aim.step % 3 == 2 || !(near > 0.0 && near < span as f64) {
        bisect(low.level, high.level) - low.level
    } else {
        near as Level
    };
    low.level + step.clamp(1, span - 1)
}

/// The middle: of the logarithms while the ends are far apart, else of the levels.
fn bisect(low: Level, high: Level) -> Level {
    let (bits_low, bits_high) = (low.max(1).ilog2(), high.ilog2());
    if bits_high > bits_low + 2 {
        return 1 << u32::midpoint(bits_low, bits_high);
    }
    low.midpoint(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many probes 100 random pools of `count` members took, where `part` sixteenths of what is for sale are there.
    fn steps(count: usize, most_shares: u64, part: u64) -> Vec<u32> {
        let mut state = 0_u64;
        let mut random = |end: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % end
        };
        let mut member = || {
            let bits = 24 + random(8);
            let max = (1 << 20) + random(1 << bits);
            Member {
                min: random(max / 8),
                max,
                active: random(max),
                shares: 1 + random(most_shares),
            }
        };
        let mut pool = || -> Vec<Member> { (0..count).map(|_| member()).collect() };
        let sum = |pool: &[Member], field: fn(&Member) -> u64| pool.iter().map(field).sum::<u64>();
        let mut steps = || {
            let pool = pool();
            let (min, max) = (sum(&pool, |m| m.min), sum(&pool, |m| m.max));
            narrow(&pool, Tax::DEFAULT.active_cost(), min + (max - min) / 16 * part).2
        };
        (0..100).map(|_| steps()).collect()
    }

    /// Levels have 93 bits, so bisection alone would take up to 90. Only the time shows where the search looks next.
    #[test]
    fn a_level_is_found_in_a_dozen_steps() {
        let (mut all, mut most) = (Vec::new(), 0);
        for count in [2, 10, 100, 1000] {
            for (shares, part) in [(16, 1), (16, 15), (1 << 16, 1), (1 << 16, 8), (1 << 16, 15)] {
                let steps = steps(count, shares, part);
                most = steps.iter().copied().fold(most, u32::max);
                all.extend(steps);
            }
        }
        let mean = all.iter().sum::<u32>() as usize / all.len();
        assert!((7..=12).contains(&mean) && most <= 18, "{mean}, at most {most}");
    }
}
