//! A balloon device on a small piece of guest memory, with small rings so that damage hits them often.

use std::sync::Arc;

use balloon_driver::driver::Line;
use balloon_driver::features::VERSION_1;
use balloon_driver::release::{Reason, Released};
use balloon_driver::{
    ActivateError, Balloon, BalloonState, BrokenState, DeviceError, FRAME_SIZE, Frame, Offer, Options,
    Progress, Release, RingError, Run,
};
use virtio_queue::{Queue, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Signature;

pub(super) type Memory = Arc<GuestMemoryMmap>;

/// Frames of guest memory: from address 0 on, a hole of as many, and some more.
pub(super) const FRAMES: u64 = 16;
/// Entries of each ring.
pub(super) const RING: u16 = 8;
/// Bytes that one queue's rings take.
pub(super) const WINDOW: u64 = 256;
/// Where a queue's available and used rings are in its window.
pub(super) const AVAILABLE: u64 = 128;
pub(super) const USED: u64 = 160;
/// How many queues a device has with everything on.
pub(super) const QUEUES: u16 = 5;

/// Memory that zeroes what it releases and checks what it is asked.
pub(super) struct Port {
    memory: Memory,
    unit: u64,
}

impl Release for Port {
    fn backed(&self) -> Vec<Run> {
        [0, 2 * FRAMES]
            .into_iter()
            .filter_map(|first| Run::new(Frame::new(first), FRAMES))
            .collect()
    }

    fn unit(&self) -> u64 {
        self.unit
    }

    fn release(&mut self, runs: &[Run], _: Reason) -> Released {
        let backed = self.backed();
        let mut frames = 0;
        let mut end = 0;
        for run in runs {
            assert!(
                run.first().number() >= end,
                "{runs:?} are not sorted and disjoint"
            );
            end = run.end().number();
            let known: u64 = backed
                .iter()
                .filter_map(|part| part.overlap(*run))
                .map(Run::count)
                .sum();
            assert_eq!(known, run.count(), "{run:?} is not memory of this guest");
            assert_eq!(
                run.aligned_inward(self.unit),
                Some(*run),
                "{run:?} is not made of whole units"
            );
            for frame in run.first().number()..end {
                self.memory
                    .write_slice(&[0; FRAME_SIZE as usize], GuestAddress(frame * FRAME_SIZE))
                    .expect("the frame is memory");
            }
            frames += run.count();
        }
        Released {
            frames,
            ..Released::default()
        }
    }
}

/// The device under test and what it may not break.
pub(super) struct Stage {
    pub(super) memory: Memory,
    pub(super) device: Balloon<Memory, Port>,
    options: Options,
    unit: u64,
    target: u64,
    /// Heads that were popped and cannot be returned, because the table does not have them.
    no_such_head: Option<u16>,
    errors: u64,
}

impl Stage {
    /// Bits of `choice` turn features on and choose the unit of release.
    pub(super) fn new(memory: &Memory, choice: u8) -> Self {
        let offer = |bit: u8| if choice & bit == 0 { Offer::On } else { Offer::Off };
        let mut options = Options::default();
        options.statistics = offer(1);
        options.free_page_reporting = offer(2);
        options.free_page_hinting = offer(4);
        options.page_poison = offer(8);
        let unit = if choice & 16 == 0 { 1 } else { 4 };
        let device = Balloon::new(
            options,
            Port {
                memory: memory.clone(),
                unit,
            },
        );
        let mut stage = Self {
            memory: memory.clone(),
            device,
            options,
            unit,
            target: 0,
            no_such_head: None,
            errors: 0,
        };
        stage.activate(!0);
        stage
    }

    /// A driver comes and takes all offered features of `accepted`.
    pub(super) fn activate(&mut self, accepted: u64) {
        let features = (self.device.features() & accepted) | VERSION_1;
        let queues = (0..QUEUES).map(queue).collect();
        self.no_such_head = None;
        let line = Arc::new(Line::default());
        match self.device.activate(features, self.memory.clone(), queues, line) {
            Ok(Progress::Done | Progress::More) => {}
            Err(ActivateError::Serve(error)) => self.failed(error),
            Err(error) => panic!("the rings are in memory: {error}"),
        }
    }

    pub(super) fn reset(&mut self, accepted: u64) {
        self.device.reset();
        assert_eq!(self.device.ballooned(), 0, "a reset pops the balloon");
        self.activate(accepted);
    }

    pub(super) fn set_target(&mut self, frames: u64) {
        self.device.set_target(frames).expect("the line never fails");
        self.target = frames.min(2 * FRAMES);
    }

    pub(super) fn notify(&mut self, queue: u16) {
        let calls = match self.device.handle_queue_event(queue) {
            Ok(Progress::Done | Progress::More) => return,
            Err(error) => error,
        };
        self.failed(calls);
    }

    pub(super) fn ask_statistics(&mut self) {
        if let Err(error) = self.device.request_statistics() {
            self.failed(error);
        }
    }

    fn failed(&mut self, error: DeviceError) {
        self.errors += 1;
        let DeviceError::Ring { queue, source } = error else {
            panic!("the line never fails: {error}")
        };
        assert!(!self.device.is_active(), "a device with a broken ring stops");
        if matches!(source, RingError::NoSuchHead { .. }) {
            self.no_such_head = Some(queue);
        }
    }

    /// The device goes on in another process.
    pub(super) fn move_elsewhere(&mut self) {
        let state = self.device.save();
        let port = Port {
            memory: self.memory.clone(),
            unit: self.unit,
        };
        self.device =
            Balloon::restore(self.options, port, &state).expect("a state that was just saved is valid");
        let without_driver = BalloonState {
            driver: None,
            ..state.clone()
        };
        assert_eq!(self.device.save(), without_driver);
        let line = Arc::new(Line::default());
        match self.device.resume(&state, self.memory.clone(), line) {
            Ok(Progress::Done | Progress::More) => {}
            Err(BrokenState::Activate(ActivateError::Serve(error))) => self.failed(error),
            Err(error) => panic!("queues that worked go on: {error}"),
        }
    }

    /// Checks what must hold whatever the guest did.
    pub(super) fn check(&mut self) -> Signature {
        assert_eq!(self.device.target(), self.target, "only the host sets the target");
        let state = self.device.save();
        self.check_heads(&state);
        let listed: u64 = state.ballooned.iter().map(|run| run.count()).sum();
        assert_eq!(listed, self.device.ballooned());
        let counters = self.device.counters();
        Signature::of([
            counters.inflated,
            counters.already_inflated,
            counters.repeated,
            counters.foreign,
            counters.deflated,
            counters.never_inflated,
            counters.reported,
            counters.hinted,
            counters.stale_hints,
            counters.kept_for_poison,
            counters.kept_for_unit,
            counters.released_runs,
            counters.unknown_statistics,
            counters.malformed_chains,
            counters.oversized_buffers,
            counters.broken_rings,
            self.errors,
            u64::from(self.device.statistics().is_some()),
        ])
    }

    /// What came off each ring went back on it, except for the one buffer that is kept.
    fn check_heads(&self, state: &BalloonState) {
        let Some(driver) = &state.driver else { return };
        let kinds = balloon_driver::features::queues(driver.features);
        for (number, (queue, kind)) in (0u16..).zip(driver.queues.iter().zip(kinds)) {
            let parked =
                kind == balloon_driver::features::QueueKind::Statistics && driver.parked_statistics.is_some();
            let expected = u16::from(parked) + u16::from(self.no_such_head == Some(number));
            let held = queue.next_avail.wrapping_sub(queue.next_used);
            assert_eq!(held, expected, "queue {number} lost a head or returned one twice");
        }
    }
}

/// Guest memory for a worker; `clear` makes it new.
pub(super) fn memory() -> Memory {
    let len = (FRAMES * FRAME_SIZE) as usize;
    let ranges = [
        (GuestAddress(0), len),
        (GuestAddress(2 * FRAMES * FRAME_SIZE), len),
    ];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory for one worker"))
}

pub(super) fn clear(memory: &Memory) {
    for base in [0, 2 * FRAMES * FRAME_SIZE] {
        memory
            .write_slice(&[0; (FRAMES * FRAME_SIZE) as usize], GuestAddress(base))
            .expect("the whole of a region is memory");
    }
}

fn queue(number: u16) -> Queue {
    let base = u64::from(number) * WINDOW;
    let state = QueueState {
        max_size: RING,
        size: RING,
        ready: true,
        desc_table: base,
        avail_ring: base + AVAILABLE,
        used_ring: base + USED,
        ..QueueState::default()
    };
    Queue::try_from(state).expect("the rings are aligned")
}
