//! A machine that can run real guests, with everything they need already built.

use std::path::{Path, PathBuf};

use guest_images::{Boot, Cache, Flavour};
use levy::doctor::Machine;
use simulated::Manager;

use crate::Plan;

/// Where the `levy` under test is; `cargo xtask test` sets it.
const LEVY: &str = "LEVY_TEST_BINARY";

/// Where the Debian root disk is; set likewise.
const DISK: &str = "LEVY_TEST_DISK";

/// A machine that can run real guests.
#[derive(Debug, Clone)]
pub struct Lab {
    levy: PathBuf,
    boot: Boot,
    disk: Option<PathBuf>,
}

impl Lab {
    /// The lab, or `None` after printing why there is none in the form that `cargo xtask test` understands.
    pub fn or_skip() -> Option<Self> {
        match Self::open() {
            Ok(lab) => Some(lab),
            Err(reason) => {
                println!("skipped: {reason}");
                None
            }
        }
    }

    /// As [`Lab::or_skip`], for a test that needs the Debian disk.
    pub fn with_disk_or_skip() -> Option<Self> {
        let lab = Self::or_skip()?;
        if lab.disk.is_none() {
            println!("skipped: there is no Debian disk: `cargo xtask test` builds one");
            return None;
        }
        Some(lab)
    }

    /// The lab, or why there is none.
    ///
    /// # Errors
    /// The machine runs no stock kernels, or something was not built; with what to do.
    pub fn open() -> Result<Self, String> {
        let levy =
            std::env::var_os(LEVY).ok_or("elsewhere: `cargo xtask test` starts real guests by itself")?;
        let machine = Machine::probe();
        if !machine.runs_kernels() {
            return Err(machine.to_string());
        }
        let cache = Cache::of_user().map_err(|error| error.to_string())?;
        let unbuilt = "no images yet: `cargo xtask test` builds them";
        Ok(Self {
            levy: levy.into(),
            disk: std::env::var_os(DISK).map(PathBuf::from),
            boot: Boot::latest(&cache, Flavour::default()).ok_or(unbuilt)?,
        })
    }

    /// The same lab with another kernel; `None` after printing that it was not built.
    pub fn with_kernel_or_skip(mut self, flavour: Flavour) -> Option<Self> {
        let boot = Cache::of_user()
            .ok()
            .and_then(|cache| Boot::latest(&cache, flavour));
        let Some(boot) = boot else {
            println!(
                "skipped: there is no kernel {}: `cargo xtask test --long` builds it",
                flavour.name()
            );
            return None;
        };
        self.boot = boot;
        Some(self)
    }

    /// A guest to be, on the initramfs alone.
    pub fn guest(&self, name: &str) -> Plan {
        Plan::new(self.clone(), name)
    }

    /// A `levy host` with so much memory, which plans every second.
    pub fn manager(&self, budget_mib: u64) -> Manager {
        Manager::start_with(&self.levy, budget_mib, &["--rebalance", "1s"])
    }

    /// The program under test.
    pub fn levy(&self) -> &Path {
        &self.levy
    }

    /// What guests boot.
    pub fn boot(&self) -> &Boot {
        &self.boot
    }

    /// The Debian root disk.
    pub fn disk(&self) -> &Path {
        self.disk
            .as_deref()
            .expect("this test asked for a lab with a disk")
    }
}
