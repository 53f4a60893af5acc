//! The pools that a region's pages are mapped from: the manager's present one, and earlier ones that still have pages.
//!
//! Pages are located by *indices*: a pool's first index plus the slot, so that pools of several generations can be told
//! apart by number. Indices of pools that were let go are used again: managers may come and go for ever.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::io::Errno;

use crate::page::{PoolGeneration, Slot};
use crate::port::Session;
use crate::region::kernel::{Arena, Span, map_private};
use crate::region::table::{Location, State};

/// A page of one of a region's pools, by a number that no other page of them has. Holds no reference by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PoolIndex(u32);

impl PoolIndex {
    /// The pool page `pages` further on in the same pool.
    pub(crate) fn plus(self, pages: u32) -> Self {
        Self(self.0 + pages)
    }

    /// Pages from `earlier` to this one; `None` when that is a later one.
    pub(crate) fn since(self, earlier: Self) -> Option<u32> {
        self.0.checked_sub(earlier.0)
    }

    /// Whether `next` is the pool page that follows, so that one mapping can have both.
    pub(crate) fn precedes(self, next: Self) -> bool {
        self.0.checked_add(1) == Some(next.0)
    }
}

impl Location for PoolIndex {
    fn belongs_to(state: State) -> bool {
        state.is_pool()
    }

    fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    fn bits(self) -> u32 {
        self.0
    }
}

/// One pool, mapped read-only for comparing.
struct MappedPool {
    generation: PoolGeneration,
    file: Arc<File>,
    view: Arena,
    first_index: u32,
    /// Bytes that the file is known to have; it never shrinks, which a seal guarantees.
    known_size: Cell<u64>,
}

impl MappedPool {
    /// The first index and, unless it is the last one of all, the one after the last.
    fn indices(&self) -> (u32, Option<u32>) {
        let pages = self.view.span().pages() as u32;
        (self.first_index, self.first_index.checked_add(pages))
    }

    fn has(&self, index: PoolIndex) -> bool {
        index
            .0
            .checked_sub(self.first_index)
            .is_some_and(|slot| (slot as usize) < self.view.span().pages())
    }
}

/// All pools of one region.
#[derive(Default)]
pub(crate) struct Pools {
    pools: Vec<MappedPool>,
}

impl Pools {
    /// Adds the session's pool, unless it is the newest already.
    pub(super) fn join(&mut self, session: &Session) -> Result<(), Errno> {
        if self
            .pools
            .last()
            .is_some_and(|pool| pool.generation == session.generation)
        {
            return Ok(());
        }
        let first_index = self.free_indices(session.slot_limit).ok_or(Errno::NOMEM)?;
        let view = Arena::view(session.pool.as_fd(), session.slot_limit as usize)?;
        let (generation, file) = (session.generation, session.pool.clone());
        self.pools.push(MappedPool {
            generation,
            file,
            view,
            first_index,
            known_size: Cell::new(0),
        });
        Ok(())
    }

    /// The lowest index from which on `count` are free.
    fn free_indices(&self, count: u32) -> Option<u32> {
        let mut starts: Vec<u32> = self.pools.iter().filter_map(|pool| pool.indices().1).collect();
        starts.push(0);
        starts.sort_unstable();
        starts.into_iter().find(|&start| {
            let end = start.checked_add(count);
            end.is_some_and(|end| {
                let apart = |(first, after): (u32, Option<u32>)| {
                    end <= first || after.is_some_and(|after| after <= start)
                };
                self.pools.iter().map(MappedPool::indices).all(apart)
            })
        })
    }

    /// The index of a slot of the newest pool; `None` when the manager named a slot beyond its own limit or the file.
    pub(crate) fn index(&self, slot: Slot) -> Option<PoolIndex> {
        let pool = self.pools.last()?;
        let inside = (slot.get() as usize) < pool.view.span().pages();
        inside.then(|| PoolIndex(pool.first_index + slot.get()))
    }

    /// Whether the newest pool's file really has `slot`: reading past its end would be fatal.
    pub(crate) fn has(&self, slot: Slot) -> bool {
        let Some(pool) = self.pools.last() else {
            return false;
        };
        let end = slot.offset() + crate::page::PAGE_SIZE as u64;
        if end > pool.known_size.get() {
            pool.known_size
                .set(pool.file.metadata().map_or(0, |meta| meta.len()));
        }
        end <= pool.known_size.get()
    }

    /// The read-only view of the page at `index`, for as many pages as follow in its pool.
    pub(crate) fn view(&self, index: PoolIndex) -> Span {
        let pool = self.of(index);
        let all = pool.view.span();
        let first = (index.0 - pool.first_index) as usize;
        all.sub(first, all.pages() - first)
    }

    /// Maps `span` copy-on-write from `index` on.
    pub(super) fn map(&self, span: Span, index: PoolIndex) -> Result<(), Errno> {
        let pool = self.of(index);
        map_private(
            span,
            pool.file.as_fd(),
            Slot::new(index.0 - pool.first_index).offset(),
        )
    }

    /// Generation and slot of a pool page.
    pub(crate) fn slot(&self, index: PoolIndex) -> (PoolGeneration, Slot) {
        let pool = self.of(index);
        (pool.generation, Slot::new(index.0 - pool.first_index))
    }

    /// Whether a pool page is one of the newest pool: the others belong to managers that are gone.
    pub(crate) fn is_newest(&self, index: PoolIndex) -> bool {
        self.pools.last().is_some_and(|pool| pool.has(index))
    }

    /// The newest pool.
    pub(crate) fn newest(&self) -> Option<PoolGeneration> {
        self.pools.last().map(|pool| pool.generation)
    }

    /// Whether there are pools besides the newest.
    pub(crate) fn has_old(&self) -> bool {
        self.pools.len() > 1
    }

    /// What the pools occupy, the newest last.
    pub(crate) fn sizes(&self) -> Vec<PoolSize> {
        let sizes = self.pools.iter().filter_map(|pool| pool.file.metadata().ok());
        sizes
            .map(|file| PoolSize {
                inode: file.ino(),
                bytes: file.blocks() * 512,
            })
            .collect()
    }

    /// Unmaps and closes all pools but the newest. No page may be mapped from them.
    pub(super) fn forget_old(&mut self) {
        let newest = self.pools.len().saturating_sub(1);
        self.pools.drain(..newest);
    }

    fn of(&self, index: PoolIndex) -> &MappedPool {
        self.pools
            .iter()
            .rfind(|pool| pool.has(index))
            .expect("a page of a pool")
    }
}

/// A pool of which a region may have pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    /// The number of its file, the same in every process that has the pool.
    pub inode: u64,
    /// Bytes of memory that the whole pool occupies, in use by this region or not.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::DomainKey;
    use crate::page::GuestId;
    use rustix::fs::{MemfdFlags, memfd_create};

    fn session(generation: u64, slot_limit: u32) -> Session {
        let pool = memfd_create("pool", MemfdFlags::CLOEXEC).unwrap();
        Session {
            guest: GuestId::new(0),
            generation: PoolGeneration::new(generation),
            key: DomainKey::from_bytes([0; 32]),
            pool: Arc::new(File::from(pool)),
            slot_limit,
        }
    }

    #[test]
    fn indices_are_used_again_however_often_the_manager_is_replaced() {
        // Three pools fit into 32 bits.
        const SLOTS: u32 = 1 << 30;
        let mut pools = Pools::default();
        for generation in 0..50 {
            pools.join(&session(generation, SLOTS)).unwrap();
            let index = pools.index(Slot::new(7)).unwrap();
            assert!(pools.is_newest(index));
            assert_eq!(pools.slot(index), (PoolGeneration::new(generation), Slot::new(7)));
            if generation % 2 == 1 {
                pools.forget_old();
            } else if generation > 0 {
                assert!(pools.has_old());
            }
        }
    }

    #[test]
    fn pools_in_use_keep_their_indices_and_there_is_an_end() {
        const SLOTS: u32 = 1 << 30;
        let mut pools = Pools::default();
        let indices = [1, 2, 3].map(|generation| {
            pools.join(&session(generation, SLOTS)).unwrap();
            pools.index(Slot::new(SLOTS - 1)).unwrap()
        });
        assert_eq!(pools.join(&session(4, SLOTS)), Err(Errno::NOMEM));
        for (index, generation) in indices.into_iter().zip(1..) {
            assert_eq!(pools.slot(index).0, PoolGeneration::new(generation));
            assert_eq!(pools.is_newest(index), generation == 3);
        }
    }
}
