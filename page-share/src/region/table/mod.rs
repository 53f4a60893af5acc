//! The page table: in whose hands is each page, and where is its content?

pub(crate) mod handover;
pub(crate) mod state;
