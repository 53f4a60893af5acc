//! The atomics of the page table. `tests/state_machine` compiles the same table with a model checker's instead.

pub(crate) use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
