//! Ctrl-C during a bench.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use levy_machine::process::{Signals, say};

/// Exit status after Ctrl-C.
pub(crate) const STATUS: u8 = 130;

/// Whether the user has had enough. Clones are the same wish.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens for the end signals. The first one is a wish, which a [`Testbed`](super::Testbed) sees within a fifth of a
    /// second; the second ends the process, and its guests with it.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn watch(signals: Signals) -> io::Result<Self> {
        let interrupt = Self::default();
        let wish = interrupt.clone();
        signals.watch(move |_| {
            if wish.0.swap(true, Ordering::SeqCst) {
                std::process::exit(i32::from(STATUS));
            }
            say("taking the guests down; press Ctrl-C again to leave at once");
        })?;
        Ok(interrupt)
    }

    /// Whether the bench should end.
    pub fn is_wanted(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
