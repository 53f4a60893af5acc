//! The crate's own page table and handing over, compiled a second time on the model checker's atomics.

#[path = "atomic.rs"]
pub(crate) mod atomic;
#[path = "../../src/region/run.rs"]
#[allow(dead_code, unreachable_pub)]
pub(crate) mod run;
#[path = "../../src/region/table/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
pub(crate) mod table;
