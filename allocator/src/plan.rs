//! A plan: how much each guest should hold, and why.

use crate::fleet::{Fleet, pool_of};
use crate::group::GroupId;
use crate::price::{Clearing, Member, PriceSearch};
use crate::tax::Tax;
use crate::{GuestId, Pages};

/// Which limit decides a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// It has all it may have; it is not short.
    Maximum,
    /// Its shares would not buy what it holds: its minimum keeps it there.
    Minimum,
    /// Its shares; all it holds is active, so no tax is paid.
    Shares,
    /// Its shares and the tax on the idle part of what it holds.
    Tax,
}

/// What one guest should hold.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Target {
    /// Whose target.
    pub guest: GuestId,
    /// The group that it was planned in.
    pub group: Option<GroupId>,
    /// Private pages it should hold.
    pub pages: Pages,
    /// Its size as it should be: `pages` and what it shares. A balloon would take the rest of its max.
    pub size: Pages,
    /// The pages of `pages` that are idle by estimate, so taxed.
    pub taxed: Pages,
    /// What decided.
    pub bound: Bound,
    /// Its adjusted shares per page, ρ = S / (active + k idle), at this target; none for a target of no pages.
    pub price: Option<f64>,
}

/// What one group got for its members.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct GroupTarget {
    /// Private pages its members hold together.
    pub pages: Pages,
    /// What decided its size.
    pub bound: Bound,
    /// The clearing price among its members, in shares per active page; see [`Plan::price`].
    pub price: Option<f64>,
}

/// Targets for a whole fleet. Sums are exact: the targets add up to the memory, or to all maximums if that is less, or to
/// all minimums if these are more.
///
/// A plan may outlive the fleet it was made for: a target belongs to a guest by its number, never by its place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    targets: Vec<Target>,
    /// Where each guest's target is, in the order of the guests' numbers.
    index: Vec<(GuestId, u32)>,
    groups: Vec<GroupTarget>,
    unassigned: Pages,
    price: Option<f64>,
}

impl Plan {
    /// The plan for `fleet`. Callers that plan again and again keep a [`Planner`] and a plan instead.
    #[must_use]
    pub fn compute(fleet: &Fleet) -> Self {
        let mut plan = Self::default();
        Planner::default().plan(fleet, &mut plan);
        plan
    }

    /// One target per claim, in the order of the claims.
    #[must_use]
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// One result per group, in the order of the groups.
    #[must_use]
    pub fn groups(&self) -> &[GroupTarget] {
        &self.groups
    }

    /// What the group at `group` got; none for an unknown one.
    #[must_use]
    pub fn group(&self, group: GroupId) -> Option<&GroupTarget> {
        self.groups.get(group.index())
    }

    /// The target of one guest; none for a guest that was not planned for. Time grows with log n.
    #[must_use]
    pub fn target(&self, guest: GuestId) -> Option<&Target> {
        let found = self.index.binary_search_by_key(&guest, |(guest, _)| *guest);
        self.targets.get(self.index[found.ok()?].1 as usize)
    }

    /// Memory that no guest may have: all are at their maximums.
    #[must_use]
    pub fn unassigned(&self) -> Pages {
        self.unassigned
    }

    /// The clearing price at the top level, in shares per active page: a guest that pays less for its last page loses
    /// it. Always finite: 0 without scarcity, and none where the memory is no more than all minimums, so that no page
    /// was for sale.
    #[must_use]
    pub fn price(&self) -> Option<f64> {
        self.price
    }
}

/// Makes plans, reusing its memory: after the first plan of a size, planning does not allocate.
#[derive(Clone, Debug, Default)]
pub struct Planner {
    search: PriceSearch,
    /// Pages per member, in the order of the fleet's members.
    pages: Vec<u64>,
    /// How each pool cleared.
    clearings: Vec<Clearing>,
}

impl Planner {
    /// Writes the plan for `fleet` into `plan`. Time grows with n log n at most, in practice with n.
    pub fn plan(&mut self, fleet: &Fleet, plan: &mut Plan) {
        self.divide(fleet);
        plan.targets.clear();
        plan.targets.reserve(fleet.claims().len());
        for (claim, &place) in fleet.claims().iter().zip(fleet.claim_places()) {
            let pool = pool_of(claim.group);
            let tax = fleet.pools()[pool].tax;
            let member = Member::of_claim(claim);
            let pages = self.pages[place as usize];
            plan.targets.push(Target {
                guest: claim.guest,
                group: claim.group,
                pages: Pages::new(pages),
                size: Pages::new(pages) + claim.shared.min(claim.max),
                taxed: Pages::new(pages.saturating_sub(member.active)),
                bound: bound(&member, pages, tax, self.clearings[pool]),
                price: own_price(&member, pages, tax),
            });
        }
        index(plan);
        plan.groups.clear();
        plan.groups.reserve(fleet.groups().len());
        for (index, &place) in fleet.group_places().iter().enumerate() {
            plan.groups.push(self.group_target(fleet, index, place as usize));
        }
        let given: u64 = plan.targets.iter().map(|target| target.pages.get()).sum();
        plan.unassigned = fleet.supply().memory - Pages::new(given);
        plan.price = self.clearings[0].price(fleet.supply().tax);
    }

    /// Divides pool by pool, from the top: groups stand before their children.
    fn divide(&mut self, fleet: &Fleet) {
        self.search.reserve(fleet.largest_pool());
        // Every place is in one pool, so what an earlier plan left here is overwritten.
        self.pages.resize(fleet.member_count(), 0);
        self.clearings.clear();
        self.clearings.reserve(fleet.pools().len());
        for (index, pool) in fleet.pools().iter().enumerate() {
            let memory = match index.checked_sub(1) {
                None => fleet.supply().memory.max(fleet.minimums()).get(),
                Some(group) => self.pages[fleet.group_places()[group] as usize],
            };
            let pages = &mut self.pages[pool.members.clone()];
            self.clearings
                .push(self.search.divide(fleet.members(pool), pool.tax, memory, pages));
        }
    }

    fn group_target(&self, fleet: &Fleet, index: usize, place: usize) -> GroupTarget {
        let parent = pool_of(fleet.groups()[index].parent);
        let inside = &fleet.pools()[index + 1];
        let outside = &fleet.pools()[parent];
        let member = &fleet.members(outside)[place - outside.members.start];
        let pages = self.pages[place];
        GroupTarget {
            pages: Pages::new(pages),
            bound: bound(member, pages, outside.tax, self.clearings[parent]),
            price: self.clearings[index + 1].price(inside.tax),
        }
    }
}

/// Writes where each guest's target is. Fleets are mostly in the order of their guests' numbers already.
fn index(plan: &mut Plan) {
    plan.index.clear();
    let targets = plan.targets.iter().zip(0..);
    plan.index
        .extend(targets.map(|(target, place)| (target.guest, place)));
    if !plan.index.is_sorted() {
        plan.index.sort_unstable();
    }
}

fn bound(member: &Member, pages: u64, tax: Tax, clearing: Clearing) -> Bound {
    if pages == member.max {
        Bound::Maximum
    } else if pages == member.min && member.exceeds(clearing, tax) {
        Bound::Minimum
    } else if pages > member.active {
        Bound::Tax
    } else {
        Bound::Shares
    }
}

fn own_price(member: &Member, pages: u64, tax: Tax) -> Option<f64> {
    let cost = member.cost(pages, tax.active_cost());
    (cost > 0).then(|| member.shares as f64 * tax.active_cost() as f64 / cost as f64)
}
