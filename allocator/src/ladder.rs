//! From targets to actions: who gives up how much, by which means, and how fast.

use std::time::Duration;

use crate::action::{Action, Step};
use crate::claim::{Balloon, Claim};
use crate::plan::Target;
use crate::state::{Permission, State};
use crate::{Fleet, Pages, Plan};

/// How many pages per second each action may move per guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Balloon inflation.
    pub balloon: Pages,
    /// Pages tried for sharing.
    pub share: Pages,
    /// Pages compressed.
    pub compress: Pages,
    /// Pages written to swap.
    pub swap: Pages,
    /// Balloon deflation.
    pub release: Pages,
}

impl Default for Rates {
    /// Inflation by 64 MiB/s, sharing and compression at a tenth of a core (about 10 us a page), swap at 16 MiB/s,
    /// deflation by 1 GiB/s: giving back is cheap, and late hurts.
    fn default() -> Self {
        Self {
            balloon: Pages::from_mib(64),
            share: Pages::new(10_000),
            compress: Pages::new(10_000),
            swap: Pages::from_mib(16),
            release: Pages::from_mib(1024),
        }
    }
}

impl Rates {
    fn of(&self, action: Action) -> Pages {
        match action {
            Action::Balloon => self.balloon,
            Action::Share => self.share,
            Action::Compress => self.compress,
            Action::Swap => self.swap,
            Action::Release => self.release,
            Action::Block => Pages::LIMIT,
        }
    }
}

/// The host at the moment of decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Situation {
    /// Its state.
    pub state: State,
    /// Free memory.
    pub free: Pages,
    /// Free memory that reclaiming aims for ([`Thresholds::goal`](crate::Thresholds::goal)).
    pub goal: Pages,
    /// Time since the last decision, which the rates are multiplied with.
    pub elapsed: Duration,
}

/// Turns a plan into steps, in the published order: balloon, share first, compress, swap, block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ladder {
    /// The rate limits.
    pub rates: Rates,
    /// Distance from the target, as a part of a guest's max, within which nothing is done. Keeps a balloon from
    /// following the noise of the estimate.
    pub dead_band: f64,
}

impl Default for Ladder {
    /// The default rates and a dead band of 1 %.
    fn default() -> Self {
        Self {
            rates: Rates::default(),
            dead_band: 0.01,
        }
    }
}

impl Ladder {
    /// Writes into `steps` what to do now. Each guest of `fleet` is held to its own target in `plan`, which may have been
    /// made for an earlier fleet; nothing is done to a guest that was not planned for.
    ///
    /// What is missing to the goal is asked of the guests above their targets in proportion to how far they are above.
    /// What a group holds above its max is asked of its members in the same way, in every state; in the high state by
    /// what the soft state permits.
    ///
    /// Per guest, what the balloon takes is not asked of the other ways; in the soft state they get only what the
    /// balloon has no room for, in the hard and low states also what its rate does not allow now. A
    /// [`Action::Share`] step names the pages that the compress and swap steps after it mean: those are done only to
    /// pages on which sharing found nothing.
    pub fn decide(&self, fleet: &Fleet, plan: &Plan, now: Situation, steps: &mut Vec<Step>) {
        steps.clear();
        let pairs = || {
            let claims = fleet.claims().iter();
            claims.filter_map(|claim| Some((claim, plan.target(claim.guest)?)))
        };
        let surplus: Pages = pairs().map(|(claim, target)| self.surplus(claim, target)).sum();
        let missing = now.goal.less(now.free).min(surplus);
        let crowds = self.crowds(fleet, plan);
        for (claim, target) in pairs() {
            let own = self.surplus(claim, target);
            if own > Pages::ZERO {
                let to_group = owed(fleet, &crowds, claim, own);
                let to_host = proportion(own, missing, surplus);
                let (wanted, state) = match (to_group > Pages::ZERO, now.state) {
                    (true, State::High) => (to_group, State::Soft),
                    (_, state) => (to_group.max(to_host), state),
                };
                self.reclaim(claim, wanted, Situation { state, ..now }, steps);
                if now.state.permits(Action::Block) == Permission::Yes {
                    steps.push(Step {
                        guest: claim.guest,
                        action: Action::Block,
                        pages: own,
                    });
                }
            } else if now.state.permits(Action::Release) == Permission::Yes {
                self.release(claim, target, now, steps);
            }
        }
    }

    /// What the members of each group hold above their targets, those of groups in it included. Nothing where no group
    /// holds more than its max.
    fn crowds(&self, fleet: &Fleet, plan: &Plan) -> Vec<Pages> {
        let groups = fleet.groups();
        if (0..groups.len()).all(|index| fleet.held_in(index) <= groups[index].max) {
            return Vec::new();
        }
        let mut surplus = vec![Pages::ZERO; groups.len()];
        for claim in fleet.claims() {
            if let (Some(group), Some(target)) = (claim.group, plan.target(claim.guest)) {
                surplus[group.index()] += self.surplus(claim, target);
            }
        }
        // Parents stand before their children.
        for (index, group) in groups.iter().enumerate().rev() {
            let inside = surplus[index];
            if let Some(parent) = group.parent {
                surplus[parent.index()] += inside;
            }
        }
        surplus
    }

    /// What a guest holds above its target; nothing within the dead band.
    fn surplus(&self, claim: &Claim, target: &Target) -> Pages {
        let above = claim.holding.held.less(target.pages);
        if above > claim.max.part(self.dead_band) {
            above
        } else {
            Pages::ZERO
        }
    }

    fn reclaim(&self, claim: &Claim, wanted: Pages, now: Situation, steps: &mut Vec<Step>) {
        let holding = &claim.holding;
        let mut push = |action, pages: Pages| {
            if pages > Pages::ZERO {
                steps.push(Step {
                    guest: claim.guest,
                    action,
                    pages,
                });
            }
            pages
        };
        let room = match holding.balloon {
            Balloon::Answers { room, .. } if now.state.permits(Action::Balloon) == Permission::Yes => {
                room.min(wanted)
            }
            _ => Pages::ZERO,
        };
        let balloon = push(Action::Balloon, self.allowed(Action::Balloon, room, now));
        // What each way after the balloon may be asked for, by the state's permission for it.
        let left = |action| match now.state.permits(action) {
            Permission::Yes => wanted - balloon,
            Permission::BeyondBalloon => wanted - room,
            Permission::No => Pages::ZERO,
        };
        let compress = left(Action::Compress).min(holding.compressible);
        let compress = self.allowed(Action::Compress, compress, now);
        let swap = (left(Action::Swap) - compress).min(holding.swappable);
        let swap = self.allowed(Action::Swap, swap, now);
        let share = left(Action::Share).min(holding.shareable);
        push(Action::Share, self.allowed(Action::Share, share, now));
        push(Action::Compress, compress);
        push(Action::Swap, swap);
    }

    /// Deflates a balloon that keeps its guest below its target.
    fn release(&self, claim: &Claim, target: &Target, now: Situation, steps: &mut Vec<Step>) {
        let Balloon::Answers { size, .. } = claim.holding.balloon else {
            return;
        };
        let kept = target.size.less(claim.max - size).min(size);
        let whole = kept == size && size > Pages::ZERO;
        if whole || kept > claim.max.part(self.dead_band) {
            let pages = self.allowed(Action::Release, kept, now);
            steps.push(Step {
                guest: claim.guest,
                action: Action::Release,
                pages,
            });
        }
    }

    /// `pages`, or what the rate of `action` allows for the time elapsed.
    fn allowed(&self, action: Action, pages: Pages, now: Situation) -> Pages {
        let rate = u128::from(self.rates.of(action).get());
        let limit = rate * now.elapsed.as_micros() / 1_000_000;
        pages.min(Pages::new(u64::try_from(limit).unwrap_or(u64::MAX)))
    }
}

/// What a guest with a surplus of `own` owes to the groups around it that hold more than their max. `surplus` is that of
/// each group, see [`Ladder::crowds`].
fn owed(fleet: &Fleet, surplus: &[Pages], claim: &Claim, own: Pages) -> Pages {
    let around = std::iter::successors(claim.group, |inner| fleet.groups()[inner.index()].parent);
    let owed = around.map(|group| {
        let all = surplus.get(group.index()).copied().unwrap_or(Pages::ZERO);
        let over = fleet
            .held_in(group.index())
            .less(fleet.groups()[group.index()].max);
        proportion(own, over.min(all), all)
    });
    owed.max().unwrap_or(Pages::ZERO)
}

/// `own` of `all` parts of `missing`, rounded up.
fn proportion(own: Pages, missing: Pages, all: Pages) -> Pages {
    let product = u128::from(own.get()) * u128::from(missing.get());
    Pages::new(product.div_ceil(u128::from(all.get().max(1))) as u64)
}
