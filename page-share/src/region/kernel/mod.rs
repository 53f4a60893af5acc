//! What the kernel does for a region: address space, userfaultfd, pagemap, and what of each there is.

pub(crate) mod features;
pub(crate) mod mappings;
pub(crate) mod memory;
pub(crate) mod slab;
pub(crate) mod userfault;
