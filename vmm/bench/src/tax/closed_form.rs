//! What the allocator's closed form gives two equal guests of which one is wholly idle.

use allocator::{Claim, Fleet, FleetError, GuestId, Pages, Plan, Shares, Supply, Tax};

use levy_machine::config::MemoryConfig;

/// Sizes of the idle and the busy guest in MiB, when the idle one uses nothing and the busy one all it has.
///
/// # Errors
/// When the guests' minimums do not fit `memory`.
pub(super) fn sizes(guest: &MemoryConfig, memory: Pages, tax: Tax) -> Result<(f64, f64), FleetError> {
    let claim = |number, active| Claim {
        active,
        ..Claim::new(
            GuestId::new(number),
            Pages::new(guest.min / 4096),
            Pages::new(guest.bytes / 4096),
            Shares::new(guest.shares),
        )
    };
    let claims = [claim(0, Pages::ZERO), claim(1, Pages::new(guest.bytes / 4096))];
    let fleet = Fleet::new(Supply { memory, tax }, &[], &claims)?;
    let plan = Plan::compute(&fleet);
    let size = |number: usize| plan.targets()[number].pages.mib();
    Ok((size(0), size(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_pair_gets_what_the_formula_says() {
        let guest = "size=256M,min=64M".parse().unwrap();
        let memory = Pages::from_mib(360);
        assert_eq!(
            sizes(&guest, memory, Tax::new(0.0).unwrap()).unwrap(),
            (180.0, 180.0)
        );
        assert_eq!(
            sizes(&guest, memory, Tax::new(0.75).unwrap()).unwrap(),
            (104.0, 256.0)
        );
    }
}
