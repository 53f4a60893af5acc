//! Who may hold how much until the next round.
//!
//! What is left of the budget is handed out in advance, as limits: a guest grows up to its own without asking. The
//! limits of all guests together never exceed the memory there is, those included that a guest has not yet been told to
//! give up: a limit that is lowered counts until its guest says that it holds. The same goes for the members of a group
//! and its max, however much is free outside it.
//!
//! A process that holds more than it was given is handed out nothing, and is asked to give up what it took before any
//! other is. Minimums are promised: they rise as if it held no more than it was given.

use std::collections::BTreeMap;

use allocator::{Group, GroupId, GuestId, Pages, Plan, State};

use crate::deal::{Heap, deal, part};
use crate::member::Member;

/// Of what is free, this part is kept for guests that ask later while none asks, as a divisor.
const KEPT: u64 = 4;

/// How much more a guest gets that waits for memory, and more yet one that is also entitled to it.
const WAITING: u64 = 8;

/// See [`WAITING`].
const ENTITLED: u64 = 32;

/// What of the memory that is free is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gives {
    /// All of it.
    All,
    /// What was promised, and no more: a guest may hold by an earlier manager's limit what this one does not know of.
    Promises,
}

/// Whether every guest got what this round meant to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Granted {
    /// All of it.
    All,
    /// Some of it is for others to give up first.
    InPart,
}

/// A guest's limit until the next round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grant {
    /// What it may hold.
    pub(super) limit: Pages,
    /// What it is to have beyond that once others have given it up.
    pub(super) owed: Pages,
}

/// What limits are made from.
#[derive(Debug)]
pub(super) struct Limiter<'a> {
    /// The budget, less what is not the guests'.
    pub(super) memory: Pages,
    /// Of that, what stays free in any case.
    pub(super) margin: Pages,
    pub(super) gives: Gives,
    pub(super) state: State,
    pub(super) plan: &'a Plan,
    /// The members' groups, which have no groups in them.
    pub(super) groups: &'a [Group],
}

/// One guest's place in the distribution, pages.
#[derive(Debug, Clone, Copy)]
struct Place {
    guest: GuestId,
    /// The group it is in, where that has a max.
    group: Option<GroupId>,
    held: u64,
    /// What it holds beyond all that it was given.
    overrun: u64,
    /// What it may come to hold before it hears of another limit.
    in_force: u64,
    /// Its process besides its pages.
    overhead: u64,
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
    /// The limit to aim for.
    wish: u64,
    rise: Rise,
}

/// By how much a limit is to rise: up to what was promised, and beyond that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Rise {
    promised: u64,
    beyond: u64,
}

impl Limiter<'_> {
    /// Every member's limit.
    pub(super) fn grant(&self, members: &[Member]) -> (BTreeMap<GuestId, Grant>, Granted) {
        let mut places: Vec<Place> = members.iter().map(|member| self.place(member)).collect();
        let capped = self.capped(&places);
        self.wish(&mut places, &capped);
        let meant: u64 = places.iter().map(|place| place.rise.all()).sum();
        for group in &capped {
            allow(&mut places, &group.members, group.most);
        }
        let all: Vec<usize> = (0..places.len()).collect();
        allow(&mut places, &all, self.spendable());
        let given: u64 = places.iter().map(|place| place.rise.all()).sum();
        let grants = places.iter().map(|place| {
            let limit = place.wish.min(place.base() + place.rise.all());
            let owed = Pages::new(place.entitled.saturating_sub(limit));
            let limit = Pages::new(limit);
            (place.guest, Grant { limit, owed })
        });
        let granted = match meant > given {
            true => Granted::InPart,
            false => Granted::All,
        };
        (grants.collect(), granted)
    }

    fn spendable(&self) -> u64 {
        self.memory.less(self.margin).get()
    }

    fn place(&self, member: &Member) -> Place {
        let overhead = member.overhead();
        let target = self.plan.target(member.id);
        let promised = member.limits.min.less(member.shared());
        let entitled = target.map_or(promised, |target| target.pages.max(promised)) + overhead;
        let (held, overrun) = (member.held, member.overrun());
        // Where all are above their targets and give up no more, nothing would ever become free enough to end this state.
        let blocked = self.state == State::Low && held >= entitled && !member.stands_still();
        let group = member.limits.group;
        Place {
            guest: member.id,
            group: group.filter(|id| self.max(*id).is_some()),
            held: held.get(),
            overrun: overrun.get(),
            in_force: member.in_force().get(),
            overhead: overhead.get(),
            entitled: entitled.get(),
            promised: (promised + overhead).get(),
            most: member.most().get(),
            short: member.short_of_minimum().get(),
            stuck: member.is_stuck(),
            weight: match (blocked || overrun > Pages::ZERO, member.waits()) {
                (true, _) => 0,
                (false, true) if held < entitled => ENTITLED,
                (false, true) => WAITING,
                (false, false) => 1,
            },
            wish: 0,
            rise: Rise::default(),
        }
    }

    /// The max of a group, where it has one.
    fn max(&self, id: GroupId) -> Option<Pages> {
        let group = self.groups.get(id.get() as usize)?;
        Some(group.max).filter(|max| *max < Pages::LIMIT)
    }

    /// The groups that have a max, with the members of each and what these may hold together, processes included.
    fn capped(&self, places: &[Place]) -> Vec<CappedGroup> {
        let mut members = BTreeMap::<GroupId, Vec<usize>>::new();
        for (index, place) in places.iter().enumerate() {
            if let Some(id) = place.group {
                members.entry(id).or_default().push(index);
            }
        }
        let group = |(id, members): (GroupId, Vec<usize>)| {
            let overhead: u64 = members.iter().map(|&index| places[index].overhead).sum();
            let max = self.max(id).unwrap_or(Pages::LIMIT);
            let most = max.get() + overhead;
            CappedGroup { members, most }
        };
        members.into_iter().map(group).collect()
    }

    /// Sets the limits to aim for, and by how much these rise.
    fn wish(&self, places: &mut [Place], capped: &[CappedGroup]) {
        for place in &mut *places {
            place.wish = place.held - place.overrun + place.short;
        }
        for group in capped {
            let excess = group.wish(places).saturating_sub(group.most);
            cut(places, &group.members, excess);
        }
        let wished: u64 = places.iter().map(|place| place.wish).sum();
        let taken: u64 = places.iter().map(|place| place.held + place.short).sum();
        match self.spendable().checked_sub(taken) {
            Some(free) => {
                let waits = |place: &Place| place.weight >= WAITING;
                let kept = if places.iter().any(waits) { 0 } else { free / KEPT };
                share(places, capped, free - kept);
            }
            None => cut_all(places, wished.saturating_sub(self.spendable())),
        }
        for place in places {
            place.rise = Rise::new(place.base(), place.wish, place.promised);
            if self.gives == Gives::Promises {
                place.rise.beyond = 0;
            }
        }
    }
}

/// The members of a group that has a max.
#[derive(Debug)]
struct CappedGroup {
    members: Vec<usize>,
    most: u64,
}

impl CappedGroup {
    fn wish(&self, places: &[Place]) -> u64 {
        self.members.iter().map(|&index| places[index].wish).sum()
    }
}

impl Place {
    /// What its limit rises from: what is in force, its overrun left out.
    fn base(&self) -> u64 {
        self.in_force - self.overrun.min(self.in_force)
    }

    /// What it may be handed out beyond its wish so far.
    fn heap(&self) -> Heap {
        Heap {
            weight: self.weight,
            room: self.most.saturating_sub(self.wish),
        }
    }
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

    fn all(self) -> u64 {
        self.promised + self.beyond
    }
}

/// Hands `free` out by weight; what one cannot use goes to the others. A group gets as much as its members would, up to
/// its max, and divides that in the same way.
fn share(places: &mut [Place], capped: &[CappedGroup], free: u64) {
    let alone = (0..places.len()).filter(|&index| places[index].group.is_none());
    let alone: Vec<usize> = alone.collect();
    let group = |group: &CappedGroup| {
        let heaps = group.members.iter().map(|&index| places[index].heap());
        let sum = heaps.filter(|heap| heap.weight > 0);
        let sum = sum.fold(Heap::default(), |sum, heap| Heap {
            weight: sum.weight + heap.weight,
            room: sum.room.saturating_add(heap.room),
        });
        let room = group.most.saturating_sub(group.wish(places));
        Heap {
            room: sum.room.min(room),
            ..sum
        }
    };
    let mut heaps: Vec<Heap> = alone.iter().map(|&index| places[index].heap()).collect();
    heaps.extend(capped.iter().map(group));
    let dealt = deal(&heaps, free);
    for (&index, more) in alone.iter().zip(&dealt) {
        places[index].wish += more;
    }
    for (group, more) in capped.iter().zip(&dealt[alone.len()..]) {
        let heaps: Vec<Heap> = group.members.iter().map(|&index| places[index].heap()).collect();
        for (&index, more) in group.members.iter().zip(deal(&heaps, *more)) {
            places[index].wish += more;
        }
    }
}

/// Lowers the rises of `whom` to what `most` for all of them suffices for: promises come first, whichever guest waits.
///
/// Whatever is said, others may grow by what they were given before, and what they took beyond that is gone as well. Only
/// a promise is kept as if it were not.
fn allow(places: &mut [Place], whom: &[usize], most: u64) {
    let sum = |of: fn(&Place) -> u64| whom.iter().map(|&index| of(&places[index])).sum::<u64>();
    let (promised, beyond) = (sum(|place| place.rise.promised), sum(|place| place.rise.beyond));
    let first = most.saturating_sub(sum(Place::base)).min(promised);
    let then = most
        .saturating_sub(sum(|place| place.in_force) + first)
        .min(beyond);
    for &index in whom {
        let rise = &mut places[index].rise;
        rise.promised = part(rise.promised, first, promised);
        rise.beyond = part(rise.beyond, then, beyond);
    }
}

/// Takes `excess` from all as far as that is possible; what those owe who give up no more, the others give too.
fn cut_all(places: &mut [Place], excess: u64) {
    let all: Vec<usize> = (0..places.len()).collect();
    cut(places, &all, excess);
    let (stuck, able): (Vec<usize>, Vec<usize>) = all.iter().partition(|&&index| places[index].stuck);
    let owed = stuck
        .iter()
        .map(|&index| places[index].held.saturating_sub(places[index].wish));
    let owed: u64 = owed.sum();
    cut(places, &able, owed);
}

/// Takes `excess` from those of `whom` that hold more than they are entitled to, by how much; from the others, down to
/// what was promised to them, only what is missing then.
fn cut(places: &mut [Place], whom: &[usize], excess: u64) {
    let mut left = excess;
    for floor in [
        |place: &Place| place.entitled.max(place.promised),
        |place: &Place| place.promised,
    ] {
        let above = |place: &Place| place.wish.saturating_sub(floor(place));
        let all: u64 = whom.iter().map(|&index| above(&places[index])).sum();
        let taken = left.min(all);
        for &index in whom {
            let above = above(&places[index]);
            places[index].wish -= part(above, taken, all);
        }
        left -= taken;
    }
}

#[cfg(test)]
mod tests;
