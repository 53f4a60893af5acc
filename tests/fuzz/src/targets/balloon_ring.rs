//! The ring memory itself as input: descriptors, rings and buffers are whatever the bytes say.

use vm_memory::{Bytes, GuestAddress};

use super::balloon_stage::{self, AVAILABLE, QUEUES, RING, Stage, WINDOW};
use crate::{Target, Worker};

pub(crate) const TARGET: Target = Target {
    name: "balloon-ring",
    about: "balloon device, all queues: the bytes are the guest memory with the rings",
    longest: 4096,
    seeds,
    worker,
};

/// The first two bytes choose features and the order of notifications, the rest is guest memory from address 0 on.
fn worker() -> Worker {
    let memory = balloon_stage::memory();
    Box::new(move |input: &[u8]| {
        let (&choice, rest) = input.split_first().unwrap_or((&0, &[]));
        let (&order, image) = rest.split_first().unwrap_or((&0, &[]));
        balloon_stage::clear(&memory);
        memory
            .write_slice(image, GuestAddress(0))
            .expect("an input is shorter than memory");
        let mut stage = Stage::new(&memory, choice);
        stage.device.start_hinting().expect("the line never fails");
        for at in 0..QUEUES {
            stage.notify((at + u16::from(order)) % QUEUES);
        }
        stage.ask_statistics();
        stage.notify(u16::from(order) % QUEUES);
        stage.check()
    })
}

/// One image per queue with buffers on it.
fn seeds() -> Vec<Vec<u8>> {
    let direct = |queue| image(queue, |at| (0x800 + 64 * u64::from(at), 64, 0));
    let ranges = |queue| image(queue, |at| (4096 * u64::from(4 + at), 4096, 2));
    let mut seeds: Vec<Vec<u8>> = (0..QUEUES)
        .flat_map(|queue| [direct(queue), ranges(queue)])
        .collect();
    // Half of the frame numbers in range, some twice.
    for seed in &mut seeds {
        for (at, place) in (0u32..).zip(seed[2 + 0x800..].chunks_exact_mut(4)) {
            place.copy_from_slice(&(at % 48).to_le_bytes());
        }
    }
    seeds
}

/// A ring full of buffers: address, length and flags by the descriptor's number.
fn image(queue: u16, buffer: impl Fn(u16) -> (u64, u32, u16)) -> Vec<u8> {
    let mut bytes = vec![0; 2 + 3072];
    let base = 2 + usize::from(queue) * WINDOW as usize;
    for at in 0..RING {
        let (address, len, flags) = buffer(at);
        let place = base + 16 * usize::from(at);
        bytes[place..place + 8].copy_from_slice(&address.to_le_bytes());
        bytes[place + 8..place + 12].copy_from_slice(&len.to_le_bytes());
        bytes[place + 12..place + 14].copy_from_slice(&flags.to_le_bytes());
        let entry = base + AVAILABLE as usize + 4 + 2 * usize::from(at);
        bytes[entry..entry + 2].copy_from_slice(&at.to_le_bytes());
    }
    let index = base + AVAILABLE as usize + 2;
    bytes[index..index + 2].copy_from_slice(&RING.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Signature;

    #[test]
    fn the_seeds_do_different_things() {
        let mut worker = worker();
        let signatures: std::collections::BTreeSet<Signature> =
            seeds().iter().map(|seed| worker(seed)).collect();
        assert!(signatures.len() >= 6, "{signatures:?}");
    }
}
