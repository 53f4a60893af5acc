//! What happens, and what is counted.

use super::dice::Dice;

/// One thing that happens. Its operands choose among what there is when it happens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(super) what: What,
    pub(super) a: u32,
    pub(super) b: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Send,
    Deliver,
    Receive,
    Merge,
    Write,
    Unmap,
    Lose,
    Reconnect,
    Die,
    Bury,
    Forge,
    Replay,
    Restart,
}

/// How often each is rolled.
const WEIGHTS: [(What, u32); 13] = [
    (What::Send, 480),
    (What::Deliver, 600),
    (What::Receive, 480),
    (What::Merge, 240),
    (What::Write, 100),
    (What::Unmap, 60),
    (What::Lose, 20),
    (What::Reconnect, 120),
    (What::Die, 3),
    (What::Bury, 8),
    (What::Forge, 120),
    (What::Replay, 80),
    (What::Restart, 1),
];

impl Step {
    pub(crate) fn roll(dice: &mut Dice) -> Self {
        let mut rolled = dice.roll(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        let what = WEIGHTS.iter().find(|(_, weight)| {
            let found = rolled < *weight;
            rolled = rolled.wrapping_sub(*weight);
            found
        });
        let what = what.map_or(What::Send, |(what, _)| *what);
        let [a, b] = [0; 2].map(|_| dice.roll(u32::MAX));
        Self { what, a, b }
    }
}

/// What is counted, so that an idle run shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    Sent,
    Done,
    Merged,
    Differed,
    Broken,
    Unmapped,
    Lost,
    Reconnected,
    Restated,
    Died,
    Buried,
    ProofUsedAgain,
    Restarted,
    Forged,
    Replayed,
    /// Requests without authority, all refused.
    Superseded,
    /// Requests of hostile processes that named what they must not.
    Refused,
    /// Hellos that were read when another connection had been welcomed since they were sent.
    LateHello,
    DeadHello,
    Secrets,
}

impl Count {
    pub(crate) const ALL: [Self; 20] = [
        Self::Sent,
        Self::Done,
        Self::Merged,
        Self::Differed,
        Self::Broken,
        Self::Unmapped,
        Self::Lost,
        Self::Reconnected,
        Self::Restated,
        Self::Died,
        Self::Buried,
        Self::ProofUsedAgain,
        Self::Restarted,
        Self::Forged,
        Self::Replayed,
        Self::Superseded,
        Self::Refused,
        Self::LateHello,
        Self::DeadHello,
        Self::Secrets,
    ];
}
