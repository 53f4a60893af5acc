//! The ACPI power button: the host's polite request to switch off.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use levy_agent::Report;
use serde_json::Map;

use super::channel::Channel;
use super::power::{End, end};

/// `struct input_event` on 64-bit machines: two 8-byte times, then type, code, value.
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Watches every input device that is a power button, each in a thread.
pub(crate) fn watch(channel: &Arc<Channel>) {
    let Ok(inputs) = fs::read_dir("/sys/class/input") else {
        return;
    };
    for input in inputs.flatten() {
        let name = fs::read_to_string(input.path().join("device/name")).unwrap_or_default();
        if !name.to_lowercase().contains("power button") {
            continue;
        }
        let Ok(device) = File::open(Path::new("/dev/input").join(input.file_name())) else {
            continue;
        };
        let channel = Arc::clone(channel);
        thread::spawn(move || {
            if pressed(device) {
                channel.report(Report::Stats {
                    name: "power_button".to_owned(),
                    values: Map::new(),
                });
                end(End::Poweroff);
            }
        });
    }
}

/// Waits until the button is pressed; false if the device goes away.
fn pressed(mut device: File) -> bool {
    let mut event = [0; EVENT_BYTES];
    while device.read_exact(&mut event).is_ok() {
        if is_press(&event) {
            return true;
        }
    }
    false
}

fn is_press(event: &[u8; EVENT_BYTES]) -> bool {
    let word = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
    word(16) == EV_KEY && word(18) == KEY_POWER && word(20) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        let mut event = [0; EVENT_BYTES];
        event[16] = 1;
        event[18] = 116;
        assert!(!is_press(&event), "release");
        event[20] = 1;
        assert!(is_press(&event));
        event[18] = 30;
        assert!(!is_press(&event), "another key");
    }
}
