//! What is done next, until enough was done.

use levy_bench::Random;

/// How long a stall is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    Short,
    Middle,
    /// Longer than a manager waits for a word.
    Long,
}

/// One thing that is done to a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    KillManager,
    KillGuest,
    StallManager(Length),
    StallGuest(Length),
    InterruptManager,
    CloseSocket,
    ChangeBudget,
    ChangeShares,
    Impostor,
    Strain,
}

/// What is left to do to a fleet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quota {
    pub(crate) kills: u64,
    pub(crate) stalls: u64,
    /// Of the stalls.
    pub(crate) long: u64,
}

impl Quota {
    pub(crate) fn is_done(self) -> bool {
        self.kills == 0 && self.stalls == 0
    }

    /// What is done next. While a manager is stalled for some time the guests have a life, too.
    pub(crate) fn choose(self, random: &mut Random) -> Action {
        let (kills, stalls) = (self.kills, self.stalls.max(self.long));
        let others = (kills + stalls) * 3 / 5 + 1;
        let at = random.within(0..=kills + stalls + others - 1);
        if at < kills {
            return match random.one_of(1, 3) {
                true => Action::KillManager,
                false => Action::KillGuest,
            };
        }
        if at >= kills + stalls {
            return match random.within(0..=10) {
                0 => Action::InterruptManager,
                1 | 2 => Action::CloseSocket,
                3..=5 => Action::ChangeBudget,
                6 => Action::ChangeShares,
                7 => Action::Impostor,
                _ => Action::Strain,
            };
        }
        let length = match random.one_of(self.long, stalls) {
            true => Length::Long,
            false if random.one_of(1, 8) => Length::Middle,
            false => Length::Short,
        };
        match random.one_of(1, 2) {
            true => Action::StallManager(length),
            false => Action::StallGuest(length),
        }
    }

    /// `action` was done.
    pub(crate) fn note(&mut self, action: Action) {
        match action {
            Action::KillManager | Action::KillGuest => self.kills = self.kills.saturating_sub(1),
            Action::StallManager(length) | Action::StallGuest(length) => {
                self.stalls = self.stalls.saturating_sub(1);
                self.long = self.long.saturating_sub(u64::from(length == Length::Long));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_comes_about_and_the_quota_is_met() {
        let mut random = Random::new(5);
        let mut quota = Quota {
            kills: 200,
            stalls: 200,
            long: 20,
        };
        let (mut kills, mut stalls, mut long) = (0, 0, 0);
        let mut kinds = std::collections::BTreeMap::<String, u32>::new();
        while !quota.is_done() {
            let action = quota.choose(&mut random);
            quota.note(action);
            *kinds.entry(format!("{action:?}")).or_default() += 1;
            match action {
                Action::KillGuest | Action::KillManager => kills += 1,
                Action::StallGuest(length) | Action::StallManager(length) => {
                    stalls += 1;
                    long += u64::from(length == Length::Long);
                }
                _ => {}
            }
        }
        assert_eq!((kills, stalls, quota.long), (200, 200, 0), "{kinds:?}");
        assert_eq!(long, 20);
        assert_eq!(kinds.len(), 14, "{kinds:?}");
    }
}
