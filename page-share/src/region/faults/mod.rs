//! Faults: what a thread waits for that touches a page which is not there.

pub(crate) mod handler;
pub(crate) mod swap_thread;
