//! The configuration space (virtio 1.3, section 5.5.4): who owns which byte of it.

use crate::features::{FREE_PAGE_HINT, PAGE_POISON};

/// Bytes of the configuration space.
pub const CONFIG_SIZE: usize = 16;

/// `num_pages`: how many frames the host wants in the balloon. The host's.
pub const TARGET_OFFSET: u64 = 0;
/// `actual`: how many frames the guest says are in it. The guest's.
pub const ACTUAL_OFFSET: u64 = 4;
/// `free_page_hint_cmd_id`: which round of hinting is on. The host's.
pub const HINT_COMMAND_OFFSET: u64 = 8;
/// `poison_val`: what the guest fills free pages with. The guest's, once page poison is negotiated.
pub const POISON_OFFSET: u64 = 12;

/// The guest stops the current round of hinting.
pub const HINT_STOP: u32 = 0;
/// The host is done with the hinted pages: the guest may use them again.
pub const HINT_DONE: u32 = 1;

/// The configuration space, host's fields and guest's fields apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) host: HostFields,
    pub(crate) guest: GuestFields,
}

/// Fields that only the host writes; the guest reads them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct HostFields {
    pub(crate) target: u32,
    pub(crate) hint_command: u32,
}

/// Fields that the guest writes. Nothing in them decides what the host does with memory, except that a poison
/// value other than zero keeps reported pages where they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct GuestFields {
    pub(crate) actual: u32,
    pub(crate) poison: u32,
}

impl Config {
    /// Copies the bytes from `offset` on into `data`; bytes past the end read as zero.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.to_bytes();
        for (at, byte) in data.iter_mut().enumerate() {
            let place = offset
                .checked_add(at as u64)
                .and_then(|place| usize::try_from(place).ok());
            *byte = place.and_then(|place| bytes.get(place)).copied().unwrap_or(0);
        }
    }

    /// Takes the bytes that belong to the guest under `features`. Returns how many did not.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], features: u64) -> u64 {
        let mut bytes = self.to_bytes();
        let mut refused = 0;
        for (at, &byte) in data.iter().enumerate() {
            match offset
                .checked_add(at as u64)
                .filter(|&place| guest_owns(place, features))
            {
                Some(place) => bytes[place as usize] = byte,
                None => refused += 1,
            }
        }
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        self.guest = GuestFields {
            actual: word(ACTUAL_OFFSET as usize),
            poison: word(POISON_OFFSET as usize),
        };
        refused
    }

    fn to_bytes(self) -> [u8; CONFIG_SIZE] {
        let fields = [
            self.host.target,
            self.guest.actual,
            self.host.hint_command,
            self.guest.poison,
        ];
        let mut bytes = [0; CONFIG_SIZE];
        for (place, field) in bytes.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

fn guest_owns(place: u64, features: u64) -> bool {
    match place {
        ACTUAL_OFFSET..HINT_COMMAND_OFFSET => true,
        POISON_OFFSET..16 => features & PAGE_POISON != 0,
        _ => false,
    }
}

/// The command number of the next round of hinting. 0 and 1 mean stop and done.
pub(crate) fn next_hint_command(last: u32) -> u32 {
    match last.wrapping_add(1) {
        HINT_STOP | HINT_DONE => 2,
        next => next,
    }
}

/// How many bytes of the configuration space mean something under `features`.
pub(crate) fn config_len(features: u64) -> usize {
    if features & PAGE_POISON != 0 {
        CONFIG_SIZE
    } else if features & FREE_PAGE_HINT != 0 {
        POISON_OFFSET as usize
    } else {
        HINT_COMMAND_OFFSET as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_write_of_any_place_and_length_changes_a_host_field() {
        let before = Config {
            host: HostFields {
                target: 0x0102_0304,
                hint_command: 0x0506_0708,
            },
            guest: GuestFields { actual: 1, poison: 2 },
        };
        for features in [0, PAGE_POISON] {
            for offset in (0..20).chain([u64::MAX - 3, u64::MAX]) {
                for len in 0..20 {
                    let mut config = before;
                    let refused = config.write(offset, &vec![0xaa; len], features);
                    assert_eq!(config.host, before.host);
                    let owned = (0..len as u64)
                        .filter(|at| {
                            offset
                                .checked_add(*at)
                                .is_some_and(|place| guest_owns(place, features))
                        })
                        .count();
                    assert_eq!(refused, (len - owned) as u64);
                    assert!(features != 0 || config.guest.poison == before.guest.poison);
                }
            }
        }
    }

    #[test]
    fn what_the_guest_wrote_reads_back_byte_by_byte() {
        let mut config = Config::default();
        for (at, byte) in [0x78, 0x56, 0x34, 0x12].into_iter().enumerate() {
            assert_eq!(config.write(ACTUAL_OFFSET + at as u64, &[byte], 0), 0);
        }
        assert_eq!(config.guest.actual, 0x1234_5678);
        let mut bytes = [0xff; 20];
        config.read(ACTUAL_OFFSET, &mut bytes);
        assert_eq!(bytes[..6], [0x78, 0x56, 0x34, 0x12, 0, 0]);
        assert_eq!(bytes[12..], [0; 8], "past the end reads as zero");
        config.read(u64::MAX, &mut bytes);
        assert_eq!(bytes, [0; 20]);
    }

    #[test]
    fn hint_commands_skip_stop_and_done() {
        assert_eq!(next_hint_command(HINT_STOP), 2);
        assert_eq!(next_hint_command(2), 3);
        assert_eq!(next_hint_command(u32::MAX), 2);
    }
}
