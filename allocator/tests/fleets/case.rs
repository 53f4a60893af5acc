//! Random fleets that are valid by construction.

use allocator::{Claim, Fleet, Group, GroupId, GuestId, Pages, Plan, Shares, Supply, Tax};
use proptest::collection::vec;
use proptest::prelude::*;

/// A fleet as plain numbers, so that a failing one can be read and shrunk.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) guests: Vec<Guest>,
    pub(crate) groups: Vec<Pool>,
    pub(crate) tax: u32,
    /// Where the memory lies between all minimums (0) and somewhat beyond all maximums (1000).
    pub(crate) memory: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) max: u64,
    /// Thousandths of `max`.
    pub(crate) min: u64,
    /// Thousandths of `max`; above 1000 the estimate is larger than the guest.
    pub(crate) active: u64,
    /// Thousandths of `max`.
    pub(crate) shared: u64,
    pub(crate) shares: u32,
    /// Any number; picks a group, or none.
    pub(crate) group: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Pool {
    /// Any number; picks an earlier group, or none.
    pub(crate) parent: u32,
    pub(crate) min: u64,
    pub(crate) max: Option<u64>,
    pub(crate) shares: u32,
    pub(crate) tax: Option<u32>,
}

fn tax() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..1000_u32, 1 => Just(0), 4 => Just(750), 1 => Just(999)]
        .prop_map(|permille| permille * 1000)
}

fn shares() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => prop_oneof![Just(500_u32), Just(1000), Just(2000)],
        4 => 1..20_u32,
        1 => 1..=u32::MAX,
    ]
}

fn thousandths(beyond: u64) -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0_u64), 1 => Just(1000), 5 => 0..=1000 + beyond]
}

fn guest(max: u64) -> impl Strategy<Value = Guest> {
    (
        1..=max,
        thousandths(0),
        thousandths(50),
        0..3000_u64,
        shares(),
        any::<u32>(),
    )
        .prop_map(|(max, min, active, shared, shares, group)| Guest {
            max,
            // Minimums of everything would leave nothing to divide.
            min: min / 3,
            active,
            shared: shared.saturating_sub(2000),
            shares,
            group,
        })
}

fn pool() -> impl Strategy<Value = Pool> {
    (
        any::<u32>(),
        0..200_u64,
        proptest::option::of(0..400_u64),
        shares(),
        proptest::option::of(tax()),
    )
        .prop_map(|(parent, min, max, shares, tax)| Pool {
            parent,
            min,
            max,
            shares,
            tax,
        })
}

/// Fleets of up to `guests` guests of up to `max` pages in up to `groups` groups.
pub(crate) fn case(guests: usize, groups: usize, max: u64) -> impl Strategy<Value = Case> {
    (
        vec(guest(max), 1..=guests),
        vec(pool(), 0..=groups),
        tax(),
        0..=1050_u64,
    )
        .prop_map(|(guests, groups, tax, memory)| Case {
            guests,
            groups,
            tax,
            memory,
        })
}

/// `thousandths` of `whole`, rounded down.
fn of(whole: u64, thousandths: u64) -> u64 {
    (u128::from(whole) * u128::from(thousandths) / 1000) as u64
}

fn tax_of(millionths: u32) -> Tax {
    Tax::new(f64::from(millionths) / 1e6).expect("generated below 1")
}

impl Case {
    pub(crate) fn claims(&self) -> Vec<Claim> {
        let group = |pick: u32| {
            let pick = pick % (self.groups.len() as u32 + 1);
            pick.checked_sub(1).map(GroupId::new)
        };
        let claim = |(id, guest): (usize, &Guest)| Claim {
            group: group(guest.group),
            active: Pages::new(of(guest.max, guest.active)),
            shared: Pages::new(of(guest.max, guest.shared)),
            ..Claim::new(
                GuestId::new(id as u64),
                Pages::new(of(guest.max, guest.min)),
                Pages::new(guest.max),
                Shares::new(guest.shares),
            )
        };
        self.guests.iter().enumerate().map(claim).collect()
    }

    /// The groups, with every maximum raised to what its members' minimums need.
    pub(crate) fn pools(&self, claims: &[Claim]) -> Vec<Group> {
        let mut groups: Vec<Group> = self
            .groups
            .iter()
            .enumerate()
            .map(|(i, pool)| raw(i, pool))
            .collect();
        for index in (0..groups.len()).rev() {
            let id = Some(GroupId::new(index as u32));
            let guests = claims
                .iter()
                .filter(|claim| claim.group == id)
                .map(|claim| claim.min);
            let pools = groups
                .iter()
                .filter(|group| group.parent == id)
                .map(|group| group.min);
            let needed: Pages = guests.chain(pools).sum();
            groups[index].max = groups[index].max.max(needed);
            groups[index].min = groups[index].min.max(needed).min(groups[index].max);
        }
        groups
    }

    pub(crate) fn fleet(&self) -> Fleet {
        let claims = self.claims();
        let groups = self.pools(&claims);
        // Room for every minimum, a group's being at most what its members can hold.
        let least: Pages = claims.iter().map(|claim| claim.min).sum();
        let least = least + groups.iter().map(|group| group.min).sum();
        let most: Pages = claims.iter().map(|claim| claim.max).sum();
        let memory = least + Pages::new(of((most - least).get(), self.memory));
        let supply = Supply {
            memory,
            tax: tax_of(self.tax),
        };
        Fleet::new(supply, &groups, &claims).expect("valid by construction")
    }

    pub(crate) fn plan(&self) -> Plan {
        Plan::compute(&self.fleet())
    }
}

fn raw(index: usize, pool: &Pool) -> Group {
    let max = pool.max.map_or(Pages::LIMIT, Pages::new);
    Group {
        parent: (pool.parent % (index as u32 + 1))
            .checked_sub(1)
            .map(GroupId::new),
        min: Pages::new(pool.min).min(max),
        max,
        tax: pool.tax.map(tax_of),
        ..Group::new(Shares::new(pool.shares))
    }
}
