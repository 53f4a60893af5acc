//! The crate's own page table, compiled a second time on the model checker's atomics.

#[path = "atomic.rs"]
pub(crate) mod atomic;
#[path = "../../src/region/run.rs"]
#[allow(dead_code, unreachable_pub)]
pub(crate) mod run;
#[path = "../../src/region/state.rs"]
#[allow(dead_code, unreachable_pub)]
pub(crate) mod state;
