//! Reclaim: private pages leave memory, and come back.

pub(crate) mod release;
pub(crate) mod sample;
pub(crate) mod squeeze;
pub(crate) mod store;
