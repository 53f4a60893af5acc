//! Loom's atomics under the names that the page table uses.
//!
//! Loom knows sequentially consistent fences but treats every other sequentially consistent access as acquire and
//! release. Such an access is therefore modelled as compilers for weak machines build it: a fence, then the access. An
//! ordering that is weakened in the page table loses its fence here too.

pub(crate) use loom::sync::atomic::Ordering;

fn fence_for(order: Ordering) {
    if order == Ordering::SeqCst {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
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
                fence_for(order);
                self.0.load(order)
            }

            pub(crate) fn store(&self, value: $int, order: Ordering) {
                fence_for(order);
                self.0.store(value, order);
            }

            pub(crate) fn swap(&self, value: $int, order: Ordering) -> $int {
                fence_for(order);
                self.0.swap(value, order)
            }

            pub(crate) fn compare_exchange(
                &self,
                from: $int,
                to: $int,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$int, $int> {
                fence_for(success);
                self.0.compare_exchange(from, to, success, failure)
            }

            pub(crate) fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                update: impl FnMut($int) -> Option<$int>,
            ) -> Result<$int, $int> {
                fence_for(success);
                self.0.fetch_update(success, failure, update)
            }

            pub(crate) fn fetch_sub(&self, value: $int, order: Ordering) -> $int {
                fence_for(order);
                self.0.fetch_sub(value, order)
            }

            pub(crate) fn fetch_or(&self, value: $int, order: Ordering) -> $int {
                fence_for(order);
                self.0.fetch_or(value, order)
            }

            pub(crate) fn fetch_and(&self, value: $int, order: Ordering) -> $int {
                fence_for(order);
                self.0.fetch_and(value, order)
            }
        }
    )+};
}

atomic!(AtomicU8: u8, AtomicU32: u32, AtomicU64: u64);
