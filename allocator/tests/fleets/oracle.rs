//! The slow planner: min-funding revocation, one page at a time, as the paper describes it.
//!
//! It knows nothing of prices, levels or closed forms: every client starts with all it may have, and a page is taken
//! from the one with the fewest adjusted shares per page, ρ = S / (P (f + k (1 - f))), until the pages suffice.

use allocator::{Claim, Fleet, GroupId, Tax};

/// One claimant of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) min: u64,
    pub(crate) max: u64,
    pub(crate) active: u64,
    pub(crate) shares: u64,
}

impl Client {
    fn of_guest(claim: &Claim) -> Self {
        let max = claim.max.get() - claim.shared.get().min(claim.max.get());
        Self {
            min: claim.min.less(claim.shared).get(),
            max,
            active: claim.active.get().min(max),
            shares: u64::from(claim.shares.get()),
        }
    }

    /// P (f + k (1 - f)) times `1/k * 10^6`, which is whole: active pages count 10^6/k, idle ones 10^6.
    pub(crate) fn cost(&self, pages: u64, tax: Tax) -> u128 {
        let active = pages.min(self.active);
        let untaxed = ((1.0 - tax.part()) * 1e6).round() as u128;
        u128::from(active) * untaxed + u128::from(pages - active) * 1_000_000
    }
}

/// Whether `a` has fewer adjusted shares per page than `b`, each holding the pages given.
fn poorer(a: (&Client, u64), b: (&Client, u64), tax: Tax) -> bool {
    u128::from(a.0.shares) * b.0.cost(b.1, tax) < u128::from(b.0.shares) * a.0.cost(a.1, tax)
}

/// Takes pages from the poorest, the last one among equals, until `memory` suffices.
fn revoke(clients: &[Client], memory: u64, tax: Tax) -> Vec<u64> {
    let mut held: Vec<u64> = clients.iter().map(|client| client.max).collect();
    for _ in memory..held.iter().sum::<u64>() {
        let mut victim: Option<usize> = None;
        for (i, client) in clients
            .iter()
            .enumerate()
            .filter(|(i, client)| held[*i] > client.min)
        {
            if victim.is_none_or(|v| !poorer((&clients[v], held[v]), (client, held[i]), tax)) {
                victim = Some(i);
            }
        }
        held[victim.expect("minimums fit")] -= 1;
    }
    held
}

/// The members of one pool as clients: its guests in order, then its groups.
pub(crate) struct Members {
    pub(crate) guests: Vec<usize>,
    pub(crate) groups: Vec<usize>,
    pub(crate) clients: Vec<Client>,
}

pub(crate) fn members(fleet: &Fleet, pool: Option<GroupId>) -> Members {
    let (claims, groups) = (fleet.claims(), fleet.groups());
    let guests: Vec<usize> = (0..claims.len()).filter(|&i| claims[i].group == pool).collect();
    let groups: Vec<usize> = (0..groups.len()).filter(|&i| groups[i].parent == pool).collect();
    let clients = guests
        .iter()
        .map(|&i| Client::of_guest(&claims[i]))
        .chain(groups.iter().map(|&i| of_group(fleet, i)))
        .collect();
    Members {
        guests,
        groups,
        clients,
    }
}

fn of_group(fleet: &Fleet, index: usize) -> Client {
    let group = &fleet.groups()[index];
    let inside = members(fleet, Some(GroupId::new(index as u32))).clients;
    let max = inside
        .iter()
        .map(|client| client.max)
        .sum::<u64>()
        .min(group.max.get());
    Client {
        min: inside
            .iter()
            .map(|client| client.min)
            .sum::<u64>()
            .max(group.min.get())
            .min(max),
        max,
        active: inside.iter().map(|client| client.active).sum::<u64>().min(max),
        shares: u64::from(group.shares.get()),
    }
}

/// The tax among the members of `pool`.
pub(crate) fn tax_in(fleet: &Fleet, pool: Option<GroupId>) -> Tax {
    match pool.map(|id| &fleet.groups()[id.get() as usize]) {
        None => fleet.supply().tax,
        Some(group) => group.tax.unwrap_or_else(|| tax_in(fleet, group.parent)),
    }
}

/// Pages per guest, in the order of the claims.
pub(crate) fn targets(fleet: &Fleet) -> Vec<u64> {
    let mut targets = vec![0; fleet.claims().len()];
    divide(fleet, None, fleet.supply().memory.get(), &mut targets);
    targets
}

fn divide(fleet: &Fleet, pool: Option<GroupId>, memory: u64, targets: &mut [u64]) {
    let Members {
        guests,
        groups,
        clients,
    } = members(fleet, pool);
    let held = revoke(&clients, memory, tax_in(fleet, pool));
    for (&guest, &pages) in guests.iter().zip(&held) {
        targets[guest] = pages;
    }
    for (&group, &pages) in groups.iter().zip(&held[guests.len()..]) {
        divide(fleet, Some(GroupId::new(group as u32)), pages, targets);
    }
}
