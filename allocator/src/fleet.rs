//! A fleet that was checked: the only thing a plan is made from.

use std::ops::Range;

use crate::fleet_error::FleetError;
use crate::group::{Group, GroupId, Owner};
use crate::price::Member;
use crate::{Claim, Pages, Tax};

/// The memory to hand out and the tax on what is left idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supply {
    /// Private pages to divide: the host's memory less what the host itself, the common copies, the overheads and
    /// the reserves need.
    pub memory: Pages,
    /// The tax at the top level and in every group that has none of its own.
    pub tax: Tax,
}

/// Guests and groups whose limits were checked against each other.
///
/// Limits that admission accepted ([`Admission::check`](crate::Admission::check)) never contradict each other, whatever
/// the memory, the estimates and the sharing are by now. Where the memory has become less than all minimums, the plan gives
/// every guest its minimum; [`Fleet::covers_minimums`] tells.
///
/// ```
/// use allocator::{Claim, Fleet, GuestId, Pages, Shares, Supply, Tax};
/// let supply = Supply { memory: Pages::from_mib(360), tax: Tax::DEFAULT };
/// let broken = Claim::new(GuestId::new(7), Pages::new(20), Pages::new(10), Shares::NORMAL);
/// let error = Fleet::new(supply, &[], &[broken]).unwrap_err();
/// assert!(error.to_string().starts_with("guest 7: min of 20 pages"));
/// ```
#[derive(Clone, Debug)]
pub struct Fleet {
    supply: Supply,
    claims: Vec<Claim>,
    groups: Vec<Group>,
    /// The top level, then one pool per group.
    pools: Vec<Pool>,
    /// The members of all pools, pool by pool: a pool's guests in the order of the claims, then its groups.
    members: Vec<Member>,
    /// Where each claim, then each group, stands among `members`.
    places: Vec<u32>,
}

/// One level of division: who shares a pool, and at what tax.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) members: Range<usize>,
    pub(crate) tax: Tax,
    /// What all guests in it hold now, those of groups in it included.
    held: Pages,
}

impl Fleet {
    /// Checks `groups` and `claims` against each other.
    ///
    /// # Errors
    /// Names the first guest or group whose limits contradict themselves or one another, with the values.
    pub fn new(supply: Supply, groups: &[Group], claims: &[Claim]) -> Result<Self, FleetError> {
        check_claims(supply, groups, claims)?;
        check_groups(groups)?;
        let mut fleet = Self {
            supply,
            claims: claims.to_vec(),
            groups: groups.to_vec(),
            pools: Vec::new(),
            members: Vec::new(),
            places: Vec::new(),
        };
        fleet.lay_out();
        fleet.sum_up()?;
        Ok(fleet)
    }

    /// Whether the memory suffices for every minimum, less what its owner shares.
    ///
    /// # Errors
    /// [`FleetError::MinimumsExceedMemory`] with the guest or group at which it does not.
    pub fn covers_minimums(&self) -> Result<(), FleetError> {
        let mut sum = 0;
        let over = self.owners_at_the_top().find(|(_, member)| {
            sum += member.min;
            sum > self.supply.memory.get()
        });
        over.map_or(Ok(()), |(owner, member)| {
            Err(FleetError::MinimumsExceedMemory {
                owner,
                min: Pages::new(member.min),
                minimums: self.minimums(),
                memory: self.supply.memory,
            })
        })
    }

    /// Private memory promised to all guests and groups together.
    #[must_use]
    pub fn minimums(&self) -> Pages {
        let top = self.pools[0].members.clone();
        Pages::new(self.members[top].iter().map(|member| member.min).sum())
    }

    /// The memory to hand out and the default tax.
    #[must_use]
    pub fn supply(&self) -> Supply {
        self.supply
    }

    /// The claims, in the order given.
    #[must_use]
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// The groups, in the order given.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The tax among the members of `group`, or of the top level.
    pub(crate) fn tax_among(&self, group: Option<GroupId>) -> Tax {
        self.pools[pool_of(group)].tax
    }

    pub(crate) fn pools(&self) -> &[Pool] {
        &self.pools
    }

    pub(crate) fn members(&self, pool: &Pool) -> &[Member] {
        &self.members[pool.members.clone()]
    }

    /// Where each claim stands among all members.
    pub(crate) fn claim_places(&self) -> &[u32] {
        &self.places[..self.claims.len()]
    }

    /// Where each group stands among all members.
    pub(crate) fn group_places(&self) -> &[u32] {
        &self.places[self.claims.len()..]
    }

    /// What the members of the group at `index` hold together.
    pub(crate) fn held_in(&self, index: usize) -> Pages {
        self.pools[index + 1].held
    }

    pub(crate) fn largest_pool(&self) -> usize {
        self.pools
            .iter()
            .map(|pool| pool.members.len())
            .max()
            .unwrap_or(0)
    }

    pub(crate) fn member_count(&self) -> usize {
        self.members.len()
    }

    /// Gives every pool its run of places and every guest and group its place in its parent's run.
    fn lay_out(&mut self) {
        let parents = self
            .claims
            .iter()
            .map(|claim| claim.group)
            .chain(self.groups.iter().map(|g| g.parent));
        let mut ends = vec![0_usize; self.groups.len() + 1];
        for parent in parents.clone() {
            ends[pool_of(parent)] += 1;
        }
        let mut start = 0;
        for end in &mut ends {
            start += std::mem::replace(end, start);
        }
        // `ends` holds the starts now; dealing out the places moves each one to its end.
        self.places = parents
            .map(|parent| {
                let next = &mut ends[pool_of(parent)];
                *next += 1;
                (*next - 1) as u32
            })
            .collect();
        self.pools.reserve_exact(ends.len());
        let mut start = 0;
        for (pool, &end) in ends.iter().enumerate() {
            let tax = match pool.checked_sub(1).map(|group| &self.groups[group]) {
                None => self.supply.tax,
                Some(group) => group.tax.unwrap_or_else(|| self.pools[pool_of(group.parent)].tax),
            };
            self.pools.push(Pool {
                members: start..end,
                tax,
                held: Pages::ZERO,
            });
            start = end;
        }
    }

    /// Fills the members: guests from their claims, groups (last first, so children before parents) from theirs.
    fn sum_up(&mut self) -> Result<(), FleetError> {
        self.members = vec![Member::default(); self.places.len()];
        for (claim, &place) in self.claims.iter().zip(&self.places) {
            self.members[place as usize] = Member::of_claim(claim);
            self.pools[pool_of(claim.group)].held += claim.holding.held;
        }
        for (index, group) in self.groups.iter().enumerate().rev() {
            let held = self.pools[index + 1].held;
            self.pools[pool_of(group.parent)].held += held;
            let members = &self.members[self.pools[index + 1].members.clone()];
            let sum = |field: fn(&Member) -> u64| members.iter().map(field).sum::<u64>();
            let minimums = sum(|member| member.min);
            if minimums > group.max.get() {
                return Err(FleetError::GroupTooSmall {
                    group: GroupId::new(index as u32),
                    minimums: Pages::new(minimums),
                    max: group.max,
                });
            }
            let max = sum(|member| member.max).min(group.max.get());
            let whole = Member {
                min: minimums.max(group.min.get()).min(max),
                max,
                active: sum(|member| member.active).min(max),
                shares: u64::from(group.shares.get()),
            };
            self.members[self.places[self.claims.len() + index] as usize] = whole;
        }
        Ok(())
    }

    /// The guests and groups that are in no group, in the order of their places.
    fn owners_at_the_top(&self) -> impl Iterator<Item = (Owner, &Member)> {
        let guests = self.claims.iter().map(|claim| Owner::Guest(claim.guest));
        let groups = (0..).map(|index| Owner::Group(GroupId::new(index)));
        let top = &self.members[self.pools[0].members.clone()];
        let owners = guests.chain(groups).zip(&self.places);
        owners.filter_map(|(owner, &place)| Some((owner, top.get(place as usize)?)))
    }
}

/// The pool in which the children of `parent` meet.
pub(crate) fn pool_of(parent: Option<GroupId>) -> usize {
    parent.map_or(0, |group| group.index() + 1)
}

fn check_claims(supply: Supply, groups: &[Group], claims: &[Claim]) -> Result<(), FleetError> {
    let count = claims.len().saturating_add(groups.len());
    if u32::try_from(count).is_err() {
        return Err(FleetError::TooMany { count });
    }
    if supply.memory > Pages::LIMIT {
        let (size, before) = (supply.memory, Pages::ZERO);
        return Err(FleetError::TooLarge {
            owner: None,
            size,
            before,
        });
    }
    let mut before = Pages::ZERO;
    for claim in claims {
        let (guest, min, max) = (claim.guest, claim.min, claim.max);
        let owner = Owner::Guest(guest);
        if max == Pages::ZERO {
            return Err(FleetError::ZeroMax { guest });
        }
        check_limits(owner, min, max, claim.shares.get())?;
        if max > Pages::LIMIT - before {
            return Err(FleetError::TooLarge {
                owner: Some(owner),
                size: max,
                before,
            });
        }
        before += max;
        if let Some(group) = claim.group.filter(|group| group.index() >= groups.len()) {
            return Err(FleetError::UnknownGroup { owner, group });
        }
    }
    if claims.is_sorted_by(|a, b| a.guest < b.guest) {
        return Ok(());
    }
    let mut guests: Vec<_> = claims.iter().map(|claim| claim.guest).collect();
    guests.sort_unstable();
    match guests
        .iter()
        .zip(guests.iter().skip(1))
        .find(|(one, next)| one == next)
    {
        Some((&guest, _)) => Err(FleetError::Twice { guest }),
        None => Ok(()),
    }
}

fn check_groups(groups: &[Group]) -> Result<(), FleetError> {
    for (index, group) in groups.iter().enumerate() {
        let owner = Owner::Group(GroupId::new(index as u32));
        check_limits(owner, group.min, group.max, group.shares.get())?;
        if let Some(parent) = group.parent.filter(|parent| parent.index() >= index) {
            return Err(FleetError::UnknownGroup { owner, group: parent });
        }
    }
    Ok(())
}

fn check_limits(owner: Owner, min: Pages, max: Pages, shares: u32) -> Result<(), FleetError> {
    if min > max {
        return Err(FleetError::MinAboveMax { owner, min, max });
    }
    if shares == 0 {
        return Err(FleetError::ZeroShares { owner });
    }
    Ok(())
}
