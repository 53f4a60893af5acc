//! A schedule as input: what the guest writes, notifies and resets, and what the host does meanwhile, in any order.

use vm_memory::{Bytes, GuestAddress};

use super::balloon_stage::{self, AVAILABLE, FRAMES, QUEUES, RING, Stage, WINDOW};
use crate::{Target, Worker};

pub(crate) const TARGET: Target = Target {
    name: "balloon-schedule",
    about: "balloon device, all queues: the bytes are what guest and host do, one after the other",
    longest: 1024,
    seeds,
    worker,
};

/// Reads numbers off the input; zeros after its end.
struct Tape<'a>(&'a [u8]);

impl Tape<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn number(&mut self, bytes: u32) -> u64 {
        (0..bytes).fold(0, |number, at| number | u64::from(self.byte()) << (8 * at))
    }

    /// Mostly inside of memory, sometimes anywhere.
    fn address(&mut self) -> u64 {
        let (wild, at) = (self.byte(), self.number(3));
        if wild < 240 {
            at % (3 * FRAMES * 4096)
        } else {
            at << 40 | at
        }
    }
}

fn worker() -> Worker {
    let memory = balloon_stage::memory();
    Box::new(move |input: &[u8]| {
        let mut tape = Tape(input);
        balloon_stage::clear(&memory);
        let mut stage = Stage::new(&memory, tape.byte());
        let mut indices = [0u16; QUEUES as usize];
        while !tape.0.is_empty() {
            act(&mut stage, &mut tape, &mut indices);
        }
        stage.check()
    })
}

fn act(stage: &mut Stage, tape: &mut Tape<'_>, indices: &mut [u16; QUEUES as usize]) {
    let what = tape.byte();
    let queue = u16::from(what >> 4) % QUEUES;
    let base = u64::from(queue) * WINDOW;
    match what & 15 {
        0..=3 => {
            // One descriptor, put on the ring.
            let head = u16::from(tape.byte()) % (RING + 1);
            let (address, len, flags) = (tape.address(), tape.number(2) as u32, u16::from(tape.byte() & 7));
            let next = tape.byte() % 10;
            let mut entry = [0; 16];
            entry[..8].copy_from_slice(&address.to_le_bytes());
            entry[8..12].copy_from_slice(&len.to_le_bytes());
            entry[12..14].copy_from_slice(&flags.to_le_bytes());
            entry[14] = next;
            write(stage, base + 16 * u64::from(head), &entry);
            offer(stage, base, &mut indices[usize::from(queue)], head);
        }
        4 | 5 => stage.notify(queue),
        6 => {
            let (address, value) = (tape.address(), tape.number(4));
            write(stage, address, &value.to_le_bytes()[..4]);
        }
        7 => {
            let (index, head) = (&mut indices[usize::from(queue)], tape.byte());
            offer(stage, base, index, u16::from(head) % (RING + 1));
        }
        8 => {
            let (offset, value) = (u64::from(tape.byte() % 24), tape.number(4));
            stage.device.write_config(offset, &value.to_le_bytes());
        }
        9 => stage.set_target(tape.number(2)),
        10 => stage.ask_statistics(),
        11 => stage.device.start_hinting().expect("the line never fails"),
        12 => stage.device.finish_hinting().expect("the line never fails"),
        13 => stage.move_elsewhere(),
        14 => {
            *indices = [0; QUEUES as usize];
            write(stage, 0, &[0; (WINDOW * QUEUES as u64) as usize]);
            stage.reset(!(u64::from(tape.byte()) << 1));
        }
        _ => {
            let mut bytes = [0; 24];
            let len = usize::from(tape.byte() % 25);
            stage
                .device
                .read_config(u64::from(tape.byte()), &mut bytes[..len]);
        }
    }
}

/// Puts `head` on the available ring, as a driver does.
fn offer(stage: &Stage, base: u64, index: &mut u16, head: u16) {
    let place = base + AVAILABLE + 4 + 2 * u64::from(*index % RING);
    write(stage, place, &head.to_le_bytes());
    *index = index.wrapping_add(1);
    write(stage, base + AVAILABLE + 2, &index.to_le_bytes());
}

/// Writes where there is memory.
fn write(stage: &Stage, address: u64, bytes: &[u8]) {
    // A guest's write to nowhere goes nowhere.
    let _ = stage.memory.write(bytes, GuestAddress(address));
}

/// Inflate, deflate, report, statistics, hint: one round each, with a notification.
fn seeds() -> Vec<Vec<u8>> {
    let round = |queue: u8, flags: u8| {
        let frames = [6, 0, 0, 0x18, 0, 33, 0, 0, 0];
        let buffer = [queue << 4, 0, 0, 0, 0x18, 0, 0, 16, flags, 0];
        let notify = [4 | queue << 4];
        [&[0][..], &frames, &buffer, &notify, &[9, 7, 0], &[13]].concat()
    };
    let mut seeds: Vec<Vec<u8>> = (0..QUEUES as u8)
        .map(|queue| round(queue, if queue > 2 { 2 } else { 0 }))
        .collect();
    let all = seeds.iter().flat_map(|seed| seed[1..].to_vec());
    seeds.push([0].into_iter().chain(all).collect());
    seeds
}
