//! Merging: private pages become mappings of a pool, and come back from there.

pub(crate) mod huge;
pub(crate) mod merge_run;
pub(crate) mod merging;
pub(crate) mod pools;
pub(crate) mod rehome;
pub(crate) mod rehome_arena;
