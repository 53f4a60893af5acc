//! The policy against guests that do what they are told, at the speed they are told it.

mod groups;
mod limits;
mod model;
mod reclaim;
mod targets;

use allocator::{GuestId, Shares};

use proptest::prelude::*;

use super::*;
use crate::member::Limits;
use levy_protocol::link::{Activity, BalloonReport, LimitStatus, Report};

const SECOND: Duration = Duration::from_secs(1);
