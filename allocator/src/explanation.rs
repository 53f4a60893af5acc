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
    /// The price its pool cleared at, in shares per active page; see [`Plan::price`].
    pub clearing_price: Option<f64>,
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
    /// What decided the target of `guest`; none for a guest that `fleet` does not have, or that was not planned for. A
    /// linear search; [`Plan::explain_claim`] needs none.
    #[must_use]
    pub fn explain(&self, fleet: &Fleet, guest: GuestId) -> Option<Explanation> {
        let claim = fleet.claims().iter().find(|claim| claim.guest == guest)?;
        self.explain_claim(fleet, claim)
    }

    /// What decided the target of the guest of `claim`, one of `fleet`; none where it was not planned for. `fleet` may be
    /// a later one than that planned for.
    #[must_use]
    pub fn explain_claim(&self, fleet: &Fleet, claim: &Claim) -> Option<Explanation> {
        let (claim, target) = (*claim, *self.target(claim.guest)?);
        // Groups are known by their places: one that has moved since is not the one planned for.
        let group = claim.group.filter(|_| claim.group == target.group);
        let group = group.and_then(|group| Some((group, *self.group(group)?)));
        Some(Explanation {
            claim,
            target,
            tax: fleet.tax_among(claim.group),
            clearing_price: match claim.group {
                None => self.price(),
                Some(_) => group.and_then(|(_, group)| group.price),
            },
            group,
        })
    }
}

impl Explanation {
    fn why_minimum(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ": its min")?;
        match (self.target.price, self.clearing_price) {
            (Some(paid), Some(asked)) => write!(
                f,
                ", although its {} pay only {paid:.4} a page where {asked:.4} is asked",
                self.claim.shares
            ),
            _ => write!(f, "; no more memory than all minimums is there"),
        }
    }
}

/// ` at PRICE UNIT`, or nothing where there is no price.
struct At(Option<f64>, &'static str);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(price) => write!(f, " at {price:.4} {}", self.1),
            None => Ok(()),
        }
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
            Bound::Minimum => self.why_minimum(f)?,
            Bound::Shares => write!(
                f,
                ": what its {} buy{}; it uses more ({} active), so only more shares, a higher min or less competition \
                 would help",
                claim.shares,
                At(self.clearing_price, "a page"),
                claim.active
            )?,
            Bound::Tax => write!(
                f,
                ": what its {} buy{}; {} of it are idle and cost {:.2} times that (tax {tax})",
                claim.shares,
                At(self.clearing_price, "an active page"),
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
