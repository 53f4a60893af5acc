//! Who may hold how much until the next round.
//!
//! What is left of the budget is handed out in advance, as limits: a guest grows up to its own without asking. The
//! limits of all guests together never exceed the memory there is, those included that a guest has not yet been told to
//! give up: a limit that is lowered counts until its guest says that it holds.

use allocator::{Fleet, Pages, State, Target};

use crate::link::Orders;
use crate::manager::member::Member;

/// Of what is free, this part is kept for whoever asks while nobody does, as a divisor.
const KEPT: u64 = 4;

/// How much more a guest gets that waits for memory, and more yet one that is also entitled to it.
const WAITING: u64 = 8;

/// See [`WAITING`].
const ENTITLED: u64 = 32;

/// Whether everybody got what this round meant to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Granted {
    /// All of it.
    All,
    /// Some of it is others' to give up first.
    InPart,
}

/// What limits are made from.
#[derive(Debug)]
pub(super) struct Limiter<'a> {
    /// The budget, less what is not the guests'.
    pub(super) memory: Pages,
    /// Of that, what stays free in any case.
    pub(super) margin: Pages,
    pub(super) state: State,
    pub(super) targets: &'a [Target],
    pub(super) fleet: &'a Fleet,
}

/// One guest's place in the distribution.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    held: u64,
    /// Its target and its process.
    entitled: u64,
    /// Its minimum and its process.
    promised: u64,
    most: u64,
    /// What it was promised and lacks: handed out first.
    short: u64,
    weight: u64,
    /// It gives up no more, whatever its limit.
    stuck: bool,
}

impl Limiter<'_> {
    /// Writes everybody's limit into `orders`.
    pub(super) fn grant(&self, members: &mut [Member], orders: &mut [Orders]) -> Granted {
        let places: Vec<Place> = members.iter().map(|member| self.place(member)).collect();
        let wished = self.wished(&places, members.iter().any(|member| member.standing.waiting > 0));
        let in_force: Vec<u64> = members.iter().map(|member| member.in_force().get()).collect();
        let rises: Vec<Rise> = places
            .iter()
            .zip(wished.iter().zip(&in_force))
            .map(|(place, (wish, now))| Rise::new(*now, *wish, place.promised))
            .collect();
        let raised: u64 = rises.iter().map(|rise| rise.promised + rise.beyond).sum();
        // Whatever is said, others may grow by what they were granted before.
        let left = self
            .memory
            .less(self.margin)
            .get()
            .saturating_sub(in_force.iter().sum());
        let granted = grants(&rises, left);
        for (index, (member, order)) in members.iter_mut().zip(orders).enumerate() {
            let limit = wished[index].min(in_force[index] + granted[index]);
            member.limit(Pages::new(limit));
            order.limit_bytes = Some(limit.saturating_mul(4096));
            order.owed_bytes = places[index].entitled.saturating_sub(limit).saturating_mul(4096);
        }
        if raised > left {
            Granted::InPart
        } else {
            Granted::All
        }
    }

    fn place(&self, member: &Member) -> Place {
        let overhead = member.overhead();
        let target = self.targets.iter().find(|target| target.guest == member.id);
        let claim = self.fleet.claims().iter().find(|claim| claim.guest == member.id);
        let promised = member.limits.min.less(member.shared());
        let entitled = target.map_or(promised, |target| target.pages.max(promised)) + overhead;
        let (held, waits) = (member.held, member.standing.waiting > 0);
        let blocked = self.state == State::Low && held >= entitled && claim.is_some();
        Place {
            held: held.get(),
            entitled: entitled.get(),
            promised: (promised + overhead).get(),
            most: member.most().get(),
            short: member.short_of_minimum().get(),
            stuck: member.is_stuck(),
            weight: match (blocked, waits) {
                (true, _) => 0,
                (false, true) if held < entitled => ENTITLED,
                (false, true) => WAITING,
                (false, false) => 1,
            },
        }
    }

    /// The limits to aim for, in pages.
    fn wished(&self, places: &[Place], anybody_waits: bool) -> Vec<u64> {
        let held: u64 = places.iter().map(|place| place.held).sum();
        let promised: u64 = places.iter().map(|place| place.short).sum();
        let spendable = self.memory.less(self.margin).get();
        match spendable.checked_sub(held + promised) {
            Some(free) => {
                let handed = if anybody_waits { free } else { free - free / KEPT };
                shares(places, handed)
            }
            None => cuts(places, held + promised - spendable),
        }
    }
}

/// Hands `free` out by weight; what one cannot use goes to the others.
fn shares(places: &[Place], free: u64) -> Vec<u64> {
    let base = |place: &Place| place.held + place.short;
    let mut limits: Vec<u64> = places.iter().map(base).collect();
    let mut left = free;
    // Each turn fills at least one guest up, or hands out everything.
    for _ in 0..=places.len() {
        let hungry = |(place, limit): &(&Place, &u64)| place.most > **limit;
        let weights: u64 = places
            .iter()
            .zip(&limits)
            .filter(hungry)
            .map(|(place, _)| place.weight)
            .sum();
        if weights == 0 || left == 0 {
            break;
        }
        let turn = left;
        for (place, limit) in places.iter().zip(&mut limits) {
            let more = part(turn, place.weight, weights)
                .min(place.most.saturating_sub(*limit))
                .min(left);
            *limit += more;
            left -= more;
        }
    }
    limits
}

/// By how much a limit shall rise: up to what was promised, and beyond that.
#[derive(Debug, Clone, Copy)]
struct Rise {
    promised: u64,
    beyond: u64,
}

impl Rise {
    fn new(now: u64, wish: u64, promised: u64) -> Self {
        let all = wish.saturating_sub(now);
        let promised = promised.saturating_sub(now).min(all);
        Self {
            promised,
            beyond: all - promised,
        }
    }
}

/// What of each rise `left` suffices for: promises come first, whoever waits.
fn grants(rises: &[Rise], left: u64) -> Vec<u64> {
    let promised: u64 = rises.iter().map(|rise| rise.promised).sum();
    let beyond: u64 = rises.iter().map(|rise| rise.beyond).sum();
    let first = left.min(promised);
    let then = (left - first).min(beyond);
    rises
        .iter()
        .map(|rise| part(rise.promised, first, promised) + part(rise.beyond, then, beyond))
        .collect()
}

/// Takes `excess` from everybody as far as that is possible; what those owe who give up no more, the others give too.
fn cuts(places: &[Place], excess: u64) -> Vec<u64> {
    let mut limits: Vec<u64> = places.iter().map(|place| place.held + place.short).collect();
    let all: Vec<usize> = (0..places.len()).collect();
    cut(places, &all, &mut limits, excess);
    let (stuck, able): (Vec<usize>, Vec<usize>) = all.iter().partition(|&&index| places[index].stuck);
    let owed = stuck
        .iter()
        .map(|&index| places[index].held.saturating_sub(limits[index]));
    let owed = owed.sum();
    cut(places, &able, &mut limits, owed);
    limits
}

/// Takes `excess` from those of `whom` that hold more than they are entitled to, by how much; from the others, down to
/// what was promised to them, only what is missing then.
fn cut(places: &[Place], whom: &[usize], limits: &mut [u64], excess: u64) {
    let mut left = excess;
    for floor in [
        |place: &Place| place.entitled.max(place.promised),
        |place: &Place| place.promised,
    ] {
        let above: Vec<u64> = whom
            .iter()
            .map(|&index| limits[index].saturating_sub(floor(&places[index])))
            .collect();
        let all: u64 = above.iter().sum();
        let taken = left.min(all);
        for (&index, above) in whom.iter().zip(&above) {
            limits[index] -= part(*above, taken, all).min(limits[index]);
        }
        left -= taken;
    }
}

/// `of` times `numerator` / `denominator`, rounded down.
fn part(of: u64, numerator: u64, denominator: u64) -> u64 {
    (u128::from(of) * u128::from(numerator) / u128::from(denominator.max(1))) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(held: u64, entitled: u64, weight: u64) -> Place {
        Place {
            held,
            entitled,
            promised: 10,
            most: 1000,
            short: 0,
            weight,
            stuck: false,
        }
    }

    #[test]
    fn what_one_cannot_use_goes_to_the_others() {
        let full = place(995, 500, 1);
        assert_eq!(shares(&[full, place(100, 500, 1)], 105), [1000, 200]);
        assert_eq!(shares(&[full, full], 100), [1000, 1000]);
    }

    #[test]
    fn whoever_waits_and_is_entitled_gets_most() {
        let limits = shares(
            &[place(100, 500, ENTITLED), place(100, 50, 1), place(100, 50, 0)],
            66,
        );
        assert_eq!(limits, [164, 102, 100]);
    }

    #[test]
    fn cuts_fall_on_those_above_their_target_and_spare_the_promised() {
        assert_eq!(cuts(&[place(300, 100, 1), place(100, 100, 1)], 50), [250, 100]);
        // More than anybody is above its target: those at theirs give too, down to the promise.
        let limits = cuts(&[place(300, 100, 1), place(100, 100, 1)], 290);
        assert_eq!(limits.iter().sum::<u64>(), 110);
        assert!(limits.iter().all(|&limit| limit >= 10), "{limits:?}");
        assert_eq!(cuts(&[place(300, 100, 1)], 10_000), [10]);
    }

    #[test]
    fn what_one_cannot_give_up_is_asked_of_its_neighbour_above_its_promise() {
        let stuck = Place {
            stuck: true,
            ..place(300, 100, 1)
        };
        // The stuck one is still asked, and the other one for the same beside.
        assert_eq!(cuts(&[stuck, place(100, 100, 1)], 50), [250, 50]);
        assert_eq!(cuts(&[stuck, place(300, 100, 1)], 100), [250, 200]);
        // Never for what was promised.
        assert_eq!(cuts(&[stuck, place(30, 20, 1)], 200), [110, 10]);
        assert_eq!(cuts(&[stuck], 50), [250]);
    }

    #[test]
    fn limits_rise_to_what_was_promised_before_any_other_rises() {
        let booting = Rise::new(20, 164, 64);
        let waiting = Rise::new(100, 400, 64);
        assert_eq!(grants(&[booting, waiting], 30), [30, 0]);
        assert_eq!(grants(&[booting, waiting], 44), [44, 0]);
        // 100 and 300 beyond.
        assert_eq!(grants(&[booting, waiting], 84), [54, 30]);
        assert_eq!(grants(&[booting, waiting], 10_000), [144, 300]);
        assert_eq!(grants(&[Rise::new(100, 50, 64), waiting], 10), [0, 10]);
    }
}
