//! What sharing and zero pages save of some guests at one moment: by the engines' own account, by the kernel's, and as a
//! part of what the [oracle](super::Findings) finds that reads all pages.

use std::time::Duration;

use serde::Serialize;

use super::oracle::Findings;
use super::quiet;
use super::testbed::{Guest, Testbed, TestbedError};
use levy_protocol::control::Request;

/// For orders to reach the guests, and for their reports to come back.
const ROUND_TRIP: Duration = Duration::from_millis(2500);

/// The account of one moment. Pages of 4 KiB.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Saving {
    pub(super) guests: u32,
    /// No engine found anything more. Otherwise this was measured because patience ran out.
    pub(super) settled: bool,
    /// What the guests hold, shared pages and zeros included.
    pub(super) held_pages: u64,
    /// Of that, mapped from the pool.
    pub(super) shared_pages: u64,
    /// Of that, the zero page.
    pub(super) zero_pages: u64,
    /// Common copies, each once.
    pub(super) pool_pages: u64,
    /// Saved: zero + shared - pool.
    pub(super) reclaimed_pages: u64,
    pub(super) reclaimed_percent: f64,
    pub(super) shared_percent: f64,
    /// Saved by the kernel's account: held pages less the sum of the guests' proportional sizes.
    pub(super) kernel_reclaimed_pages: u64,
    /// Of what the oracle found.
    pub(super) of_oracle: f64,
    /// What the oracle's ideal would be.
    pub(super) ceiling_percent: f64,
    pub(super) oracle: Findings,
    /// Full passes of the guest that was scanned least since it came.
    pub(super) least_passes: u64,
    /// CPU used by all engines since the guests started.
    pub(super) engine_cpu_s: f64,
    /// Private memory of the VMM with most of it, outside its guest's memory.
    pub(super) vmm_private_kib: u64,
}

impl Saving {
    /// Looks at `guests` once they were [`quiet`] for `time`, while nothing changes: scanning stops first, then all of
    /// them stand still.
    ///
    /// # Errors
    /// When one does not answer, or ends.
    pub(super) fn measure(
        testbed: &mut Testbed,
        guests: &[Guest],
        time: Duration,
    ) -> Result<Self, TestbedError> {
        let settled = quiet::wait(testbed, guests, time)?;
        let scan_cpu = testbed.host().registry().policy().settings().scan.cpu;
        testbed.set(|settings| settings.scan.cpu = 0.0)?;
        testbed.pass(ROUND_TRIP)?;
        guests.iter().try_for_each(|guest| testbed.pause(*guest))?;
        let mut saving = Self::of(testbed, guests)?;
        saving.settled = settled;
        guests.iter().try_for_each(|guest| testbed.resume(*guest))?;
        testbed.set(|settings| settings.scan.cpu = scan_cpu)?;
        Ok(saving)
    }

    fn of(testbed: &Testbed, guests: &[Guest]) -> Result<Self, TestbedError> {
        let stats: Vec<_> = guests
            .iter()
            .map(|guest| testbed.ask(*guest, &Request::Stats))
            .collect::<Result<_, _>>()?;
        let all = |part: &str, name: &str| -> Vec<u64> {
            let number = |stats: &serde_json::Value| stats[part][name].as_u64().unwrap_or_default();
            stats.iter().map(number).collect()
        };
        let sum = |part, name| all(part, name).iter().sum::<u64>();
        let pool_pages: u64 = {
            let domains = testbed.host().domains();
            let sizes = domains
                .values()
                .filter_map(|domain| domain.with(|domain| domain.sizes().pool_pages));
            sizes.map(u64::from).sum()
        };
        let oracle = Findings::of(testbed, guests)?;
        let saved = (oracle.found_zero + oracle.found_shared).saturating_sub(pool_pages);
        let percent = |pages: u64| pages as f64 * 100.0 / oracle.held.max(1) as f64;
        Ok(Self {
            guests: guests.len() as u32,
            settled: false,
            held_pages: oracle.held,
            shared_pages: oracle.found_shared,
            zero_pages: oracle.found_zero,
            pool_pages,
            reclaimed_pages: saved,
            reclaimed_percent: percent(saved),
            shared_percent: percent(oracle.found_shared),
            kernel_reclaimed_pages: oracle.held.saturating_sub(sum("memory", "guest_pss_kib") / 4),
            of_oracle: saved as f64 / oracle.reclaimable.max(1) as f64,
            ceiling_percent: percent(oracle.reclaimable),
            least_passes: all("pages", "passes").into_iter().min().unwrap_or_default(),
            engine_cpu_s: (sum("pages", "scan_cpu_us") + sum("pages", "handler_cpu_us")) as f64 / 1e6,
            vmm_private_kib: all("memory", "vmm_private_kib")
                .into_iter()
                .max()
                .unwrap_or_default(),
            oracle,
        })
    }
}

impl std::fmt::Display for Saving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} guests: {} pages held, {} reclaimed ({:.1} %; by the kernel {}), {:.1} % of the oracle's {}; missed {:?}; \
             {} passes at least{}",
            self.guests,
            self.held_pages,
            self.reclaimed_pages,
            self.reclaimed_percent,
            self.kernel_reclaimed_pages,
            self.of_oracle * 100.0,
            self.oracle.reclaimable,
            self.oracle.missed,
            self.least_passes,
            if self.settled { "" } else { "; not quiet" }
        )
    }
}
