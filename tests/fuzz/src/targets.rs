//! Every target, one file each.

mod balloon_frames;
mod balloon_ring;
mod balloon_schedule;
mod balloon_stage;
mod share_domain;
mod share_wire;

use crate::Target;

/// All targets, in the order in which `all` runs them.
pub const ALL: &[Target] = &[
    balloon_ring::TARGET,
    balloon_schedule::TARGET,
    balloon_frames::TARGET,
    share_wire::TARGET,
    share_domain::TARGET,
];
