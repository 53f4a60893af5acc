//! What was set by the API: by the manager's own answers it holds until it is set anew, whichever manager there is.

use crate::fleet::Fleet;
use crate::manager::View;
use crate::tally::Breach;

/// A value that was set last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Assigned {
    /// The only one that may be seen; several, where it is not known what became of a change.
    values: Vec<u64>,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// It was accepted, and is written down.
    Kept,
    Refused,
    /// It was not answered, or is not written down.
    Unsure,
}

impl Assigned {
    pub(crate) fn new(value: u64) -> Self {
        Self { values: vec![value] }
    }

    /// Notes that it was to be `to`.
    pub(crate) fn set(&mut self, to: u64, change: Change) {
        match change {
            Change::Kept => self.values = vec![to],
            Change::Unsure => self.values.push(to),
            Change::Refused => {}
        }
    }

    /// Whether it may be `seen`. Where not, that is told once.
    fn holds(&mut self, seen: u64) -> bool {
        let holds = self.values.contains(&seen);
        if !holds {
            self.values = vec![seen];
        }
        holds
    }
}

impl Fleet {
    /// The budget, and the limits of those guests that are there, are what was set last.
    pub(crate) fn compare_settings(&mut self, view: &View) {
        let budget = view.host.settings.budget_bytes;
        let mut pairs = vec![("the budget".to_owned(), &mut self.manager.budget, budget)];
        for guest in &mut self.guests {
            let (name, Some(life)) = (&guest.kind.name, &mut guest.life) else {
                continue;
            };
            let seen = view.guests.iter().find(|seen| seen.name == *name);
            let Some(seen) = seen.filter(|seen| seen.pid == life.process.id()) else {
                continue;
            };
            let shares = u64::from(seen.limits.shares);
            pairs.push((format!("the shares of {name}"), &mut life.shares, shares));
            pairs.push((
                format!("the minimum of {name}"),
                &mut life.min_bytes,
                seen.limits.min_bytes,
            ));
        }
        self.tally.add("settings_compared", pairs.len() as u64);
        for (what, assigned, seen) in pairs {
            let before = assigned.clone();
            if !assigned.holds(seen) {
                let what = format!("{what}: {seen}, and not {:?}", before.values);
                self.witness.breach(Breach::SettingsLost, 1, &what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_last_holds_and_what_is_unsure_may() {
        let mut assigned = Assigned::new(1);
        assert!(assigned.holds(1));
        assigned.set(2, Change::Refused);
        assert!(assigned.holds(1));
        assigned.set(2, Change::Unsure);
        assert!(assigned.holds(1) && assigned.holds(2) && assigned.holds(1));
        assigned.set(3, Change::Kept);
        assert!(!assigned.holds(2), "an older value");
        assert!(assigned.holds(2), "told once");
    }
}
