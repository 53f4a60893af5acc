//! Loom's atomics under the names that the page table uses.
//!
//! Loom knows sequentially consistent fences but treats every other sequentially consistent access as acquire and
//! release. Such an access is therefore modelled as compilers for weak machines build it. There are two ways, and each
//! model is explored with both: a fence before every such access, or a fence after every such access that writes. An
//! ordering that is weakened in the page table loses its fence in one of the two at least. (A claim whose exchange is no
//! more than acquire and release passes the first way, because the look at the pins that follows has a fence of its own,
//! and fails the second.)

use std::cell::Cell;

pub(crate) use loom::sync::atomic::Ordering;

/// Where fences stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fences {
    /// Before reads and writes.
    Leading,
    /// After writes.
    Trailing,
}

thread_local! {
    static FENCES: Cell<Fences> = const { Cell::new(Fences::Leading) };
}

/// Places fences from now on, in all threads of the models that this thread explores.
pub(crate) fn place(fences: Fences) {
    FENCES.set(fences);
}

fn fence(order: Ordering, place: Fences) {
    if order == Ordering::SeqCst && FENCES.get() == place {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// An access that writes, with its fences.
fn writing<T>(order: Ordering, access: impl FnOnce() -> T) -> T {
    fence(order, Fences::Leading);
    let result = access();
    fence(order, Fences::Trailing);
    result
}

macro_rules! atomic {
    ($($name:ident: $int:ty),+) => {$(
        pub(crate) struct $name(loom::sync::atomic::$name);

        #[allow(dead_code)]
        impl $name {
            pub(crate) fn new(value: $int) -> Self {
                Self(loom::sync::atomic::$name::new(value))
            }

            pub(crate) fn load(&self, order: Ordering) -> $int {
                fence(order, Fences::Leading);
                self.0.load(order)
            }

            pub(crate) fn store(&self, value: $int, order: Ordering) {
                writing(order, || self.0.store(value, order));
            }

            pub(crate) fn swap(&self, value: $int, order: Ordering) -> $int {
                writing(order, || self.0.swap(value, order))
            }

            pub(crate) fn compare_exchange(
                &self,
                from: $int,
                to: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                writing(success, || self.0.compare_exchange(from, to, success, failure))
            }

            pub(crate) fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                update: impl FnMut($int) -> Option<$int>,
            ) -> Result<$int, $int> {
                writing(success, || self.0.fetch_update(success, failure, update))
            }

            pub(crate) fn fetch_sub(&self, value: $int, order: Ordering) -> $int {
                writing(order, || self.0.fetch_sub(value, order))
            }

            pub(crate) fn fetch_or(&self, value: $int, order: Ordering) -> $int {
                writing(order, || self.0.fetch_or(value, order))
            }

            pub(crate) fn fetch_and(&self, value: $int, order: Ordering) -> $int {
                writing(order, || self.0.fetch_and(value, order))
            }
        }
    )+};
}

atomic!(AtomicU8: u8, AtomicU32: u32, AtomicU64: u64);
