//! The pools that a region's pages are mapped from: the manager's present one, and earlier ones that still have pages.
//!
//! Page details hold *places*: a pool's first place plus the slot, so that pools of several generations can be told
//! apart by number. Places of pools that were let go are used again: managers may come and go for ever.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::io::Errno;

use crate::page::{PoolGeneration, Slot};
use crate::port::Session;
use crate::region::kernel::memory::{Arena, Span, map_private};

/// One pool, mapped read-only for comparing.
struct Pool {
    generation: PoolGeneration,
    file: Arc<File>,
    view: Arena,
    first_place: u32,
    /// Bytes that the file is known to have; it never shrinks, which a seal guarantees.
    known_size: Cell<u64>,
}

impl Pool {
    /// The first place and, unless it is the last one of all, the one after the last.
    fn places(&self) -> (u32, Option<u32>) {
        let pages = self.view.span().pages() as u32;
        (self.first_place, self.first_place.checked_add(pages))
    }

    fn has(&self, place: u32) -> bool {
        place
            .checked_sub(self.first_place)
            .is_some_and(|slot| (slot as usize) < self.view.span().pages())
    }
}

/// All pools of one region.
#[derive(Default)]
pub(crate) struct Pools {
    pools: Vec<Pool>,
}

impl Pools {
    /// Adds the session's pool, unless it is the newest already.
    pub(crate) fn join(&mut self, session: &Session) -> Result<(), Errno> {
        if self
            .pools
            .last()
            .is_some_and(|pool| pool.generation == session.generation)
        {
            return Ok(());
        }
        let first_place = self.free_places(session.slot_limit).ok_or(Errno::NOMEM)?;
        let view = Arena::view(session.pool.as_fd(), session.slot_limit as usize)?;
        let (generation, file) = (session.generation, session.pool.clone());
        self.pools.push(Pool {
            generation,
            file,
            view,
            first_place,
            known_size: Cell::new(0),
        });
        Ok(())
    }

    /// The lowest place from which on `count` places are free.
    fn free_places(&self, count: u32) -> Option<u32> {
        let mut starts: Vec<u32> = self.pools.iter().filter_map(|pool| pool.places().1).collect();
        starts.push(0);
        starts.sort_unstable();
        starts.into_iter().find(|&start| {
            let end = start.checked_add(count);
            end.is_some_and(|end| {
                let apart = |(first, after): (u32, Option<u32>)| {
                    end <= first || after.is_some_and(|after| after <= start)
                };
                self.pools.iter().map(Pool::places).all(apart)
            })
        })
    }

    /// The place of a slot of the newest pool; `None` when the manager named a slot beyond its own limit or the file.
    pub(crate) fn place(&self, slot: Slot) -> Option<u32> {
        let pool = self.pools.last()?;
        let inside = (slot.get() as usize) < pool.view.span().pages();
        inside.then(|| pool.first_place + slot.get())
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

    /// The read-only view of the page at `place`, for as many pages as follow in its pool.
    pub(crate) fn view(&self, place: u32) -> Span {
        let pool = self.of(place);
        let all = pool.view.span();
        let first = (place - pool.first_place) as usize;
        all.sub(first, all.pages() - first)
    }

    /// Maps `span` copy-on-write from `place` on.
    pub(crate) fn map(&self, span: Span, place: u32) -> Result<(), Errno> {
        let pool = self.of(place);
        map_private(
            span,
            pool.file.as_fd(),
            Slot::new(place - pool.first_place).offset(),
        )
    }

    /// Generation and slot of a place.
    pub(crate) fn slot(&self, place: u32) -> (PoolGeneration, Slot) {
        let pool = self.of(place);
        (pool.generation, Slot::new(place - pool.first_place))
    }

    /// Whether a place is one of the newest pool: the others belong to managers that are gone.
    pub(crate) fn is_newest(&self, place: u32) -> bool {
        self.pools.last().is_some_and(|pool| pool.has(place))
    }

    /// The newest pool.
    pub(crate) fn newest(&self) -> Option<PoolGeneration> {
        self.pools.last().map(|pool| pool.generation)
    }

    /// Whether there are pools besides the newest.
    pub(crate) fn has_old(&self) -> bool {
        self.pools.len() > 1
    }

    /// What the pools besides the newest occupy.
    pub(crate) fn old(&self) -> Vec<OldPool> {
        let older = self.pools.len().saturating_sub(1);
        let sizes = self.pools[..older]
            .iter()
            .filter_map(|pool| pool.file.metadata().ok());
        sizes
            .map(|file| OldPool {
                inode: file.ino(),
                bytes: file.blocks() * 512,
            })
            .collect()
    }

    /// Unmaps and closes all pools but the newest. No page may be mapped from them.
    pub(crate) fn forget_old(&mut self) {
        let newest = self.pools.len().saturating_sub(1);
        self.pools.drain(..newest);
    }

    fn of(&self, place: u32) -> &Pool {
        self.pools
            .iter()
            .rfind(|pool| pool.has(place))
            .expect("a place in a pool")
    }
}

/// A pool of a manager that is gone and of which a region still has pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldPool {
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
    fn places_are_used_again_however_often_the_manager_is_replaced() {
        // Three pools fit into 32 bits.
        const SLOTS: u32 = 1 << 30;
        let mut pools = Pools::default();
        for generation in 0..50 {
            pools.join(&session(generation, SLOTS)).unwrap();
            let place = pools.place(Slot::new(7)).unwrap();
            assert!(pools.is_newest(place));
            assert_eq!(pools.slot(place), (PoolGeneration::new(generation), Slot::new(7)));
            if generation % 2 == 1 {
                pools.forget_old();
            } else if generation > 0 {
                assert!(pools.has_old());
            }
        }
    }

    #[test]
    fn pools_in_use_keep_their_places_and_there_is_an_end() {
        const SLOTS: u32 = 1 << 30;
        let mut pools = Pools::default();
        let places = [1, 2, 3].map(|generation| {
            pools.join(&session(generation, SLOTS)).unwrap();
            pools.place(Slot::new(SLOTS - 1)).unwrap()
        });
        assert_eq!(pools.join(&session(4, SLOTS)), Err(Errno::NOMEM));
        for (place, generation) in places.into_iter().zip(1..) {
            assert_eq!(pools.slot(place).0, PoolGeneration::new(generation));
            assert_eq!(pools.is_newest(place), generation == 3);
        }
    }
}
