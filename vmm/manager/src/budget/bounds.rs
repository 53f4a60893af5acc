//! Which budgets a machine can have.

use std::fmt;
use std::io;

use super::{Budget, BudgetError, Source, field, limit_here};

/// Least budget: less is a slip of the keyboard. That what was promised fits is tested apart.
const LEAST: u64 = 1 << 20;

/// Most, in multiples of the machine's memory. More than all of it may be meant: the host has swap, and memory may be
/// added.
const MOST: u64 = 2;

/// The bounds of a budget on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BudgetBounds {
    /// Bytes of memory that the machine has.
    machine: u64,
}

impl BudgetBounds {
    /// Those of the machine that this runs on.
    ///
    /// # Errors
    /// When /proc/meminfo cannot be read.
    fn of_machine() -> io::Result<Self> {
        let meminfo = std::fs::read_to_string("/proc/meminfo")?;
        let machine =
            field(&meminfo, "MemTotal:").ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?;
        Ok(Self { machine })
    }

    /// Whether a budget of `bytes` is within them.
    ///
    /// # Errors
    /// [`BudgetError::OutOfBounds`], which names them.
    fn check(self, bytes: u64) -> Result<(), BudgetError> {
        let most = self.machine.saturating_mul(MOST);
        if (LEAST..=most).contains(&bytes) {
            return Ok(());
        }
        Err(BudgetError::OutOfBounds {
            bytes,
            least: Mib(LEAST),
            most: Mib(most),
            machine: Mib(self.machine),
        })
    }

    /// What is to be said of a budget of `bytes` that is within the bounds and more than the machine has.
    fn warning(self, bytes: u64) -> Option<String> {
        (bytes > self.machine).then(|| {
            format!(
                "the budget of {} is more than this machine's memory, {}: the kernel may swap or kill before guests are \
                 squeezed",
                Mib(bytes),
                Mib(self.machine)
            )
        })
    }
}

impl Budget {
    /// `bytes` as asked for by name.
    ///
    /// # Errors
    /// [`BudgetError::OutOfBounds`].
    pub fn explicit(bytes: u64) -> Result<Self, BudgetError> {
        // A machine that does not say what it has has no bounds.
        if let Ok(bounds) = BudgetBounds::of_machine() {
            bounds.check(bytes)?;
        }
        Ok(Self {
            bytes,
            source: Source::Explicit,
        })
    }

    /// What is to be said of a budget that was asked for and is more than there is: in the machine, or in the control
    /// groups that this process is in.
    pub fn warning(&self) -> Option<String> {
        if self.source != Source::Explicit {
            return None;
        }
        let bounds = BudgetBounds::of_machine().ok()?;
        bounds.warning(self.bytes).or_else(|| {
            let (left, group) = limit_here()?;
            (self.bytes > left).then(|| {
                format!(
                    "the budget of {} is more than the control group {} leaves, {}: the kernel may swap or kill in it \
                     before guests are squeezed",
                    Mib(self.bytes),
                    group.display(),
                    Mib(left)
                )
            })
        })
    }
}

/// Bytes, shown as whole MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mib(pub u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_budget_that_cannot_be_is_refused_with_the_bounds() {
        let bounds = BudgetBounds { machine: 24 * GIB };
        for bytes in [0, LEAST - 1, 48 * GIB + 1, u64::MAX] {
            let error = bounds.check(bytes).unwrap_err().to_string();
            for word in [&format!("{bytes} bytes"), "from 1 MiB", "49152 MiB", "24576 MiB"] {
                assert!(error.contains(word), "{error}");
            }
        }
        for bytes in [LEAST, 24 * GIB, 48 * GIB] {
            assert!(bounds.check(bytes).is_ok(), "{bytes}");
        }
    }

    #[test]
    fn a_budget_beyond_the_machine_is_warned_of() {
        let bounds = BudgetBounds { machine: 24 * GIB };
        assert_eq!(bounds.warning(24 * GIB), None);
        assert!(bounds.warning(25 * GIB).unwrap().contains("25600 MiB"));
    }

    #[test]
    fn this_machine_has_bounds() {
        assert!(Budget::explicit(64 << 20).is_ok());
        assert!(matches!(
            Budget::explicit(0),
            Err(BudgetError::OutOfBounds { bytes: 0, .. })
        ));
    }
}
