//! Registers by which a guest switches itself off, restarts, or says that it panicked.

use crate::layout;

/// What a write to a power register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PowerRequest {
    Off,
    Restart,
    Panicked,
}

/// Sleep type 5 (the DSDT's `_S5`) with the enable bit.
const SLEEP_OFF: u8 = 5 << 2 | 1 << 5;
/// Keyboard controller: pulse the reset line.
const PULSE_RESET: u8 = 0xFE;
/// pvpanic: the kernel panicked, as opposed to having loaded a crash kernel.
const PANICKED: u8 = 1;

/// What writing `value` to `port` asks for, if anything.
pub(super) fn request(port: u16, value: u8) -> Option<PowerRequest> {
    match (port, value) {
        (layout::SLEEP_CONTROL, SLEEP_OFF) => Some(PowerRequest::Off),
        (layout::RESET, _) => Some(PowerRequest::Restart),
        (layout::I8042_COMMAND, PULSE_RESET) => Some(PowerRequest::Restart),
        (layout::PVPANIC, event) if event & PANICKED != 0 => Some(PowerRequest::Panicked),
        _ => None,
    }
}

/// What reading `port` gives, where it is one of these registers.
pub(super) fn read(port: u16) -> Option<u8> {
    match port {
        // Nothing waits in the keyboard controller, and it takes commands.
        layout::I8042_COMMAND => Some(0),
        layout::SLEEP_CONTROL | layout::SLEEP_STATUS => Some(0),
        // The events that pvpanic understands.
        layout::PVPANIC => Some(PANICKED),
        _ => None,
    }
}
