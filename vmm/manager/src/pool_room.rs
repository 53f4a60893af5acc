//! How large the pools of common copies may become until the next round.
//!
//! A page that enters a pool takes memory of the budget that no guest's limit holds down. Honest guests give more back
//! than that at once; a hostile process can publish pages that no guest has. So pools grow into what is not handed out
//! and not promised, and never into what was promised, whatever is published.

use allocator::{Group, Pages};
use page_share::{LocalManager, PoolLimit};

use crate::member::Member;
use crate::policy::Spent;

/// Most that all pools together may occupy, those of managers that are gone included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolRoom {
    /// At all.
    pub all: Pages,
    /// From here on no page enters that one guest alone has: such a guest needs no neighbour to make them up. Minimums
    /// count in full for it: what sharing spares a guest now it may need again.
    pub alone: Pages,
}

impl PoolRoom {
    /// Of `memory`, which is the budget less what is kept free in any case. `handed_out` is what guests may come to hold
    /// before they hear of another limit. Where all is handed out pools grow by `step` all the same, at the cost of
    /// the next limits: guests that share give it back.
    pub(super) fn new(
        memory: Pages,
        spent: Spent,
        (handed_out, step): (Pages, Pages),
        promised: Promised,
    ) -> Self {
        let memory = memory.less(spent.manager);
        let free = memory.less(handed_out).max(spent.pools + step);
        let all = free.min(memory.less(promised.unshared));
        Self {
            all,
            alone: all.min(memory.less(promised.full)),
        }
    }

    /// Lets the pools of `domains` grow by what is left beside pools of managers that are gone, which hold `old`: all by
    /// as much.
    pub(super) fn divide(self, domains: &[LocalManager], old: Pages) {
        let pages = |domain: &LocalManager| domain.with(|domain| domain.pool_pages()).unwrap_or(0);
        let used: Vec<u32> = domains.iter().map(pages).collect();
        let taken = old + used.iter().map(|&used| Pages::new(used.into())).sum::<Pages>();
        let more = |most: Pages| most.less(taken).get() / domains.len().max(1) as u64;
        let limit = |used: u32, more: u64| used.saturating_add(u32::try_from(more).unwrap_or(u32::MAX));
        for (domain, used) in domains.iter().zip(used) {
            let limit = PoolLimit {
                pages: limit(used, more(self.all)),
                alone: limit(used, more(self.alone)),
            };
            domain.with(|domain| domain.limit_pool(limit));
        }
    }
}

/// What was promised to all guests and groups together, processes included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Promised {
    /// As long as what is shared now stays so.
    unshared: Pages,
    /// However little is shared.
    full: Pages,
}

impl Promised {
    /// To `members` and their `groups`.
    pub(super) fn to(members: &[Member], groups: &[Group]) -> Self {
        let mut beyond: Vec<Pages> = groups.iter().map(|group| group.min).collect();
        let mut promised = Self::default();
        for member in members {
            let min = member.limits.min;
            promised.unshared += min.less(member.shared()) + member.overhead();
            promised.full += min + member.overhead();
            let group = member.limits.group.map(|id| id.get() as usize);
            if let Some(beyond) = group.and_then(|place| beyond.get_mut(place)) {
                *beyond = beyond.less(min);
            }
        }
        let beyond: Pages = beyond.into_iter().sum();
        promised.unshared += beyond;
        promised.full += beyond;
        promised
    }
}

#[cfg(test)]
mod tests {
    use page_share::{AnonymousMemory, Domain, Gfn, Options, PAGE_SIZE, Region};

    use super::*;

    #[test]
    fn the_only_domain_gets_all_of_the_room() {
        const PAGES: u32 = 200;
        let manager = LocalManager::new(Domain::new(1 << 10).unwrap());
        let room = PoolRoom {
            all: Pages::new(17),
            alone: Pages::new(17),
        };
        room.divide(std::slice::from_ref(&manager), Pages::new(7));
        let memory = AnonymousMemory::new(PAGES).unwrap();
        // Each content twice.
        (0..PAGES).for_each(|at| memory.write_page(at, &[(at / 2 + 1) as u8; PAGE_SIZE]));
        let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
        region.connect(Box::new(manager.attach(PAGES).unwrap())).unwrap();
        (0..4).for_each(|_| region.scan_pass());
        assert_eq!(manager.with(|domain| domain.pool_pages()), Some(10));
    }
}
