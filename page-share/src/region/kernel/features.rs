//! Whether this kernel can do what a region needs.

use linux_raw_sys::general as sys;

use crate::region::error::AdoptError;
use crate::region::kernel::userfault::{GUEST_FEATURES, OpenError};

const NAMES: [(u32, &str); 6] = [
    (sys::UFFD_FEATURE_MOVE, "UFFD_FEATURE_MOVE (Linux 6.8)"),
    (sys::UFFD_FEATURE_WP_ASYNC, "UFFD_FEATURE_WP_ASYNC (Linux 6.7)"),
    (sys::UFFD_FEATURE_POISON, "UFFD_FEATURE_POISON (Linux 6.6)"),
    (
        sys::UFFD_FEATURE_WP_UNPOPULATED,
        "UFFD_FEATURE_WP_UNPOPULATED (Linux 6.4)",
    ),
    (
        sys::UFFD_FEATURE_PAGEFAULT_FLAG_WP,
        "UFFD_FEATURE_PAGEFAULT_FLAG_WP (Linux 5.7)",
    ),
    (
        sys::UFFD_FEATURE_EVENT_REMAP,
        "UFFD_FEATURE_EVENT_REMAP (Linux 4.11)",
    ),
];

/// What is wrong with a kernel of `release`, or `None`.
///
/// UFFDIO_MOVE could corrupt memory before 6.12.37 and 6.15.6; distributions keep their own numbers for kernels older
/// than 6.12 and backport, so only upstream series known to be broken are refused.
fn known_broken(release: &str) -> Option<&'static str> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next()?, numbers.next()?, numbers.next().unwrap_or(0));
    let fixed = match version {
        (6, 12, patch) => patch >= 37,
        (6, 13 | 14, _) => false,
        (6, 15, patch) => patch >= 6,
        (major, minor, _) => (major, minor) >= (6, 8),
    };
    (!fixed).then_some("a UFFDIO_MOVE without known faults")
}

/// Checks the kernel's release.
pub(crate) fn check_release() -> Result<(), AdoptError> {
    let release = release();
    match known_broken(&release) {
        Some(feature) => Err(AdoptError::KernelTooOld { feature, release }),
        None => Ok(()),
    }
}

/// The error for a userfaultfd that could not be opened.
pub(crate) fn explain(error: OpenError) -> AdoptError {
    match error {
        OpenError::Open(errno) => AdoptError::Userfaultfd(errno.into()),
        OpenError::Features(available) => {
            let missing = GUEST_FEATURES & !available;
            let feature = NAMES.iter().find(|(bit, _)| missing & u64::from(*bit) != 0);
            let feature = feature.map_or("a userfaultfd that can be switched on", |(_, name)| name);
            AdoptError::KernelTooOld {
                feature,
                release: release(),
            }
        }
    }
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_series_are_named_and_fixed_ones_pass() {
        for good in [
            "6.12.37",
            "6.12.95+deb12-cloud-amd64",
            "6.15.6",
            "6.16.0-rc1",
            "6.18.44-x",
            "7.0",
            "6.8.0-45-generic",
        ] {
            assert_eq!(known_broken(good), None, "{good}");
        }
        for bad in [
            "6.12.36",
            "6.13.9",
            "6.14.11",
            "6.15.5",
            "6.7.12",
            "6.1.0-56-cloud-amd64",
            "5.10.1",
        ] {
            assert!(known_broken(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn a_missing_feature_is_named_with_the_version_that_brought_it() {
        let without_move = GUEST_FEATURES & !u64::from(sys::UFFD_FEATURE_MOVE);
        let text = explain(OpenError::Features(without_move)).to_string();
        assert!(
            text.contains("UFFD_FEATURE_MOVE (Linux 6.8)") && text.contains("6.12.37"),
            "{text}"
        );
    }
}
