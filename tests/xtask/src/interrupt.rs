//! Ctrl-C, SIGTERM and SIGHUP: noted, and turned into an error at the next check, so that values clean up as they drop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The user wants this to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

static NOTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Notes the signals from now on; a second one ends the process at once.
pub(crate) fn watch() -> Result<()> {
    let noted = NOTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(noted))?;
        signal_hook::flag::register(signal, Arc::clone(noted))?;
    }
    Ok(())
}

/// Fails once a signal was noted.
pub(crate) fn check() -> Result<()> {
    let noted = NOTED.get().is_some_and(|noted| noted.load(Ordering::Relaxed));
    if noted { Err(Interrupted.into()) } else { Ok(()) }
}
