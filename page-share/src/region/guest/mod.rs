//! One guest's memory as all threads of a region share it.

pub(crate) mod adoptable;
pub(crate) mod gate;
pub(crate) mod layout;
pub(crate) mod pin;
pub(crate) mod shared;
