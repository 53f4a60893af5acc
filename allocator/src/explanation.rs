//! Why a guest has the size it has, in a sentence.

use std::fmt;

use crate::group::GroupId;
use crate::plan::{Bound, GroupTarget, Plan, Target};
use crate::{Claim, Fleet, GuestId, Pages, Tax};

/// Everything that decided one guest's target. `Display` answers "why is my VM small?".
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Explanation {
    /// The guest's claim.
    pub claim: Claim,
    /// Its target.
    pub target: Target,
    /// The tax it pays.
    pub tax: Tax,
    /// The price its pool cleared at, in shares per active page: whoever pays less for its last page loses it.
    pub clearing_price: f64,
    /// What limits its group, where it is in one.
    pub group: Option<(GroupId, GroupTarget)>,
}

impl Explanation {
    /// How much the target would move for each page the estimate of active memory is off, 0 to 1.
    ///
    /// Under the tax that is 1 - 1/k = τ at an unchanged price; where a bound or the shares alone decide, nothing.
    #[must_use]
    pub fn sensitivity(&self) -> f64 {
        match self.target.bound {
            Bound::Tax => self.tax.part(),
            Bound::Maximum | Bound::Minimum | Bound::Shares => 0.0,
        }
    }
}

impl Plan {
    /// What decided the target of `guest`; none for a guest that `fleet`, which must be the fleet planned for, does
    /// not have. A linear search.
    #[must_use]
    pub fn explain(&self, fleet: &Fleet, guest: GuestId) -> Option<Explanation> {
        let index = fleet.claims().iter().position(|claim| claim.guest == guest)?;
        self.explain_at(fleet, index)
    }

    /// The same for the claim at `index`, at once.
    #[must_use]
    pub fn explain_at(&self, fleet: &Fleet, index: usize) -> Option<Explanation> {
        let claim = *fleet.claims().get(index)?;
        let target = *self.targets().get(index)?;
        let group = claim.group.and_then(|group| Some((group, *self.group(group)?)));
        Some(Explanation {
            claim,
            target,
            tax: fleet.tax_among(claim.group),
            clearing_price: group.map_or(self.price(), |(_, group)| group.price),
            group,
        })
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            claim, target, tax, ..
        } = self;
        write!(f, "{} should hold {}", claim.guest, target.pages)?;
        if claim.shared > Pages::ZERO {
            write!(f, " beside {} that it shares", claim.shared)?;
        }
        match target.bound {
            Bound::Maximum => write!(f, ": all its max of {} allows", claim.max)?,
            Bound::Minimum => write!(
                f,
                ": its min, although its {} pay only {:.4} a page where {:.4} is asked",
                claim.shares, target.price, self.clearing_price
            )?,
            Bound::Shares => write!(
                f,
                ": what its {} buy at {:.4} a page; it uses more ({} active), so only more shares, a higher min or \
                 less competition would help",
                claim.shares, self.clearing_price, claim.active
            )?,
            Bound::Tax => write!(
                f,
                ": what its {} buy at {:.4} an active page; {} of it are idle and cost {:.2} times that (tax {tax})",
                claim.shares,
                self.clearing_price,
                target.taxed,
                tax.idle_cost()
            )?,
        }
        if let Some((id, group)) = self.group.filter(|_| target.bound != Bound::Maximum) {
            write!(f, "; {id} has {} for all its members", group.pages)?;
            match group.bound {
                Bound::Maximum => write!(f, ", its max")?,
                Bound::Minimum => write!(f, ", its min")?,
                Bound::Shares | Bound::Tax => {}
            }
        }
        Ok(())
    }
}
