//! The scan: which pages were written, which are quiet, and what the manager says to those.

pub(crate) mod backoff;
pub(crate) mod look;
pub(crate) mod priorities;
pub(crate) mod scanner;
pub(crate) mod speculation;
