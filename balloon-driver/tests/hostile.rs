//! A table of lies: what a guest can put on the rings and into the registers, and what still holds.

mod stage;

use balloon_driver::driver::Buffer;
use balloon_driver::features::QueueKind::{self, Deflate, Hinting, Inflate, Reporting, Statistics};
use balloon_driver::{ACTUAL_OFFSET, ActivateError, Counters, DeviceError, Progress, TARGET_OFFSET};
use stage::{FRAMES, Memory, Stage, all_on};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where the lies keep their data: a frame that nothing else uses.
const SPARE: u64 = 3000 * 4096;

const ALL_QUEUES: [QueueKind; 5] = [Inflate, Deflate, Statistics, Hinting, Reporting];

/// One chain that a guest may put on any queue.
struct Lie {
    name: &'static str,
    /// Descriptors from number 0 on.
    table: Vec<Descriptor>,
}

fn lies() -> Vec<Lie> {
    let one = |addr, len, flags, next| Descriptor::new(addr, len, flags, next);
    let lie = |name, table| Lie { name, table };
    vec![
        lie("a buffer of no bytes", vec![one(SPARE, 0, 0, 0)]),
        lie("half a frame number", vec![one(SPARE, 6, 0, 0)]),
        lie("a buffer outside of memory", vec![one(1 << 40, 1024, 0, 0)]),
        lie(
            "a buffer that leaves memory",
            vec![one(u64::from(FRAMES) * 4096 - 8, 1024, 0, 0)],
        ),
        lie(
            "a buffer that wraps the address space",
            vec![one(u64::MAX - 4, 1024, 0, 0)],
        ),
        lie(
            "a range that wraps the address space",
            vec![one(u64::MAX - 4095, u32::MAX, WRITE, 0)],
        ),
        lie("a buffer of 4 GiB", vec![one(SPARE, u32::MAX, 0, 0)]),
        lie(
            "a writable buffer of 4 GiB",
            vec![one(3600 * 4096 + 1, u32::MAX, WRITE, 0)],
        ),
        lie(
            "lengths that overflow together",
            vec![one(0, u32::MAX, WRITE | NEXT, 1), one(0, u32::MAX, WRITE, 0)],
        ),
        lie("a chain that leads to itself", vec![one(SPARE, 4, NEXT, 0)]),
        lie(
            "a loop of two",
            vec![one(SPARE, 4, NEXT, 1), one(SPARE, 4, NEXT, 0)],
        ),
        lie(
            "a next descriptor that does not exist",
            vec![one(SPARE, 4, NEXT, 999)],
        ),
        lie(
            "both directions",
            vec![one(SPARE, 4, NEXT, 1), one(SPARE, 4096, WRITE, 0)],
        ),
        lie("an empty indirect table", vec![one(SPARE, 0, INDIRECT, 0)]),
        lie(
            "an indirect table of half an entry",
            vec![one(SPARE, 24, INDIRECT, 0)],
        ),
        lie(
            "an indirect table outside of memory",
            vec![one(1 << 40, 32, INDIRECT, 0)],
        ),
        lie(
            "an indirect table of 4 GiB",
            vec![one(0, 0xffff_fff0, INDIRECT, 0)],
        ),
        lie(
            "an indirect table that is the descriptor table",
            vec![one(0, 2048, INDIRECT, 0)],
        ),
        lie(
            "an indirect table that goes on",
            vec![one(SPARE, 16, INDIRECT | NEXT, 1), one(SPARE, 4, 0, 0)],
        ),
        lie("every flag there is", vec![one(SPARE, 16, u16::MAX, u16::MAX)]),
    ]
}

#[test]
fn every_lie_on_every_queue_returns_its_head_once_and_releases_nothing_in_use() {
    for kind in ALL_QUEUES {
        for lie in lies() {
            let Stage {
                mut device,
                mut driver,
                memory,
                line,
                ..
            } = Stage::new(all_on(), 0);
            // A frame in use that no lie names.
            let precious = GuestAddress(3500 * 4096);
            memory.write_obj(0x600d_u64, precious).unwrap();
            let queue = driver.queue_number(kind).unwrap();
            let ring = driver.ring(kind).unwrap();
            for (at, descriptor) in (0u16..).zip(&lie.table) {
                // The table of the queue at hand, wherever it is.
                ring.write_descriptor(&*memory, at, *descriptor).unwrap();
            }
            let used = ring.layout().used();
            ring.offer(&*memory, 0).unwrap();
            let outcome = device.handle_queue_event(queue);
            assert!(
                matches!(outcome, Ok(Progress::Done)),
                "{}: {outcome:?} on {kind:?}",
                lie.name
            );
            if kind == Statistics {
                // Parked; asking for more returns it.
                device.request_statistics().unwrap();
            }
            let index: u16 = memory.read_obj(GuestAddress(used.0 + 2)).unwrap();
            let head: u32 = memory.read_obj(GuestAddress(used.0 + 4)).unwrap();
            assert_eq!((index, head), (1, 0), "{} on {kind:?}", lie.name);
            assert_eq!(
                line.take_queues(),
                1 << queue,
                "{} on {kind:?}: the driver is told",
                lie.name
            );
            let left: u64 = memory.read_obj(precious).unwrap();
            assert!(left == 0x600d, "{} on {kind:?} took a page in use", lie.name);
        }
    }
}

#[test]
fn broken_rings_stop_the_device_until_its_reset() {
    /// Breaks the ring of a queue.
    type Break = fn(&mut Stage, QueueKind);
    let ways: [(&str, Break); 3] = [
        ("the index jumps", |stage, kind| {
            let place = stage.driver.ring(kind).unwrap().layout().available().0 + 2;
            stage.memory.write_obj(5000u16, GuestAddress(place)).unwrap();
        }),
        ("the index goes back", |stage, kind| {
            let place = stage.driver.ring(kind).unwrap().layout().available().0 + 2;
            stage.memory.write_obj(u16::MAX, GuestAddress(place)).unwrap();
        }),
        ("a head that the table does not have", |stage, kind| {
            let memory = stage.memory.clone();
            stage.driver.ring(kind).unwrap().offer(&*memory, 128).unwrap();
        }),
    ];
    for kind in ALL_QUEUES {
        for (name, way) in ways {
            let mut stage = Stage::new(all_on(), 0);
            let queue = stage.driver.queue_number(kind).unwrap();
            way(&mut stage, kind);
            let outcome = stage.device.handle_queue_event(queue);
            assert!(
                matches!(outcome, Err(DeviceError::Ring { .. })),
                "{name} on {kind:?}: {outcome:?}"
            );
            assert!(!stage.device.is_active());
            assert!(
                matches!(stage.device.handle_queue_event(0), Ok(Progress::Done)),
                "quiet until the reset"
            );
            stage.device.set_target(10).unwrap();
            let counters = stage.device.counters();
            assert_eq!((counters.broken_rings, counters.ignored_events), (1, 1));
            stage.device.reset();
            let fresh =
                balloon_driver::driver::Driver::new(stage.memory.clone(), GuestAddress(0), stage.features);
            let mut driver = fresh.unwrap();
            let queues = driver.queues().unwrap();
            let _ = stage
                .device
                .activate(stage.features, stage.memory.clone(), queues, stage.line.clone())
                .unwrap();
            driver.send_frames(Inflate, &[2500]).unwrap();
            assert!(matches!(stage.device.handle_queue_event(0), Ok(Progress::Done)));
            assert_eq!(stage.device.ballooned(), 1);
        }
    }
}

#[test]
fn heads_before_a_broken_entry_still_come_back() {
    let Stage {
        mut device,
        mut driver,
        memory,
        ..
    } = Stage::new(all_on(), 0);
    driver.send_frames(Inflate, &[2000]).unwrap();
    driver.send_frames(Inflate, &[2001]).unwrap();
    driver.ring(Inflate).unwrap().offer(&*memory, 4000).unwrap();
    assert!(device.handle_queue_event(0).is_err());
    assert_eq!(driver.reap(Inflate).unwrap(), 2);
    assert_eq!(device.ballooned(), 2);
}

/// Sends frame numbers and returns what they changed in the counters.
fn count(stage: &mut Stage, kind: QueueKind, frames: &[u32]) -> Counters {
    let sent = stage.driver.send_frames(kind, frames).unwrap();
    assert!(matches!(
        stage.device.handle_queue_event(sent.queue),
        Ok(Progress::Done)
    ));
    assert_eq!(stage.driver.reap(kind).unwrap(), 1);
    stage.device.counters()
}

#[test]
fn frames_that_lie_are_counted_and_harm_nobody() {
    let mut stage = Stage::new(all_on(), 0);
    let counters = count(&mut stage, Inflate, &[3000, 3000, 2999, FRAMES, u32::MAX, 3000]);
    assert_eq!(
        (counters.inflated, counters.repeated, counters.foreign),
        (2, 2, 2)
    );
    assert_eq!((counters.released, counters.released_runs), (2, 1));
    // Again: the guest may have used the frame without a word.
    stage.memory.write_obj(5u64, GuestAddress(3000 * 4096)).unwrap();
    let counters = count(&mut stage, Inflate, &[3000]);
    assert_eq!((counters.inflated, counters.already_inflated), (2, 1));
    assert_eq!(
        stage.memory.read_obj::<u64>(GuestAddress(3000 * 4096)).unwrap(),
        0
    );
    // Taken back though never given, and given back twice.
    let counters = count(&mut stage, Deflate, &[3000, 3000, 1, FRAMES + 7]);
    assert_eq!((counters.deflated, counters.never_inflated), (1, 1));
    assert_eq!((counters.repeated, counters.foreign), (3, 3));
    let counters = count(&mut stage, Deflate, &[3000]);
    assert_eq!((counters.deflated, counters.never_inflated), (1, 2));
    assert_eq!(stage.device.ballooned(), 1);
}

#[test]
fn a_guest_that_gives_away_its_own_rings_hurts_only_itself() {
    let mut stage = Stage::new(all_on(), 0);
    let frames: Vec<u32> = (0..64).collect();
    stage.driver.send_frames(Inflate, &frames).unwrap();
    // The used ring is written after the release, into fresh pages; nothing may panic from here on.
    let _ = stage.device.handle_queue_event(0);
    for queue in 0..5 {
        let _ = stage.device.handle_queue_event(queue);
    }
    stage.device.reset();
    assert_eq!(stage.device.ballooned(), 0);
}

#[test]
fn the_guest_cannot_set_the_target() {
    let mut stage = Stage::new(all_on(), 0);
    stage.device.set_target(77).unwrap();
    stage.device.write_config(TARGET_OFFSET, &[0xff; 16]);
    stage.device.write_config(u64::MAX, &[1, 2, 3]);
    assert_eq!(stage.device.target(), 77);
    assert_eq!(stage.device.actual(), u64::from(u32::MAX));
    assert_eq!(stage.device.counters().refused_config_bytes, 11);
    stage.device.write_config(ACTUAL_OFFSET, &[0; 4]);
    assert_eq!(stage.device.actual(), 0);
    stage.device.set_target(u64::MAX).unwrap();
    assert_eq!(
        stage.device.target(),
        u64::from(FRAMES),
        "never more than there is"
    );
}

#[test]
fn a_reset_in_the_middle_forgets_buffers_and_balloon() {
    let mut stage = Stage::new(all_on(), 0);
    stage.driver.send_frames(Inflate, &[2000, 2001]).unwrap();
    assert!(stage.device.handle_queue_event(0).is_ok());
    stage.driver.send_statistics(&[(4, 1)]).unwrap();
    assert!(stage.device.handle_queue_event(2).is_ok());
    stage.driver.send_frames(Inflate, &[2002]).unwrap();
    stage.device.reset();
    assert!(matches!(stage.device.handle_queue_event(0), Ok(Progress::Done)));
    assert_eq!((stage.device.ballooned(), stage.device.counters().popped), (0, 2));
    assert!(stage.device.statistics().is_none());
    assert_eq!(
        stage.driver.reap(Statistics).unwrap(),
        0,
        "a reset device touches no ring"
    );
}

#[test]
fn activation_refuses_what_was_not_offered_or_cannot_be_reached() {
    use balloon_driver::features::{STATISTICS, VERSION_1};
    let Stage {
        mut device,
        driver,
        memory,
        line,
        features,
        ..
    } = Stage::new(all_on(), 0);
    device.reset();
    let queues = || driver.queues().unwrap();
    assert!(
        device
            .activate(features | 1 << 40, memory.clone(), queues(), line.clone())
            .is_err()
    );
    assert!(
        device
            .activate(features & !VERSION_1, memory.clone(), queues(), line.clone())
            .is_err()
    );
    assert!(matches!(
        device.activate(features, memory.clone(), Vec::new(), line.clone()),
        Err(ActivateError::Queue(0))
    ));
    let mut outside = queues();
    outside[2]
        .try_set_used_ring_address(GuestAddress(1 << 40))
        .unwrap();
    assert!(
        device
            .activate(features, memory.clone(), outside, line.clone())
            .is_err()
    );
    assert!(!device.is_active());
    assert!(
        device
            .activate(features & !STATISTICS, memory, queues(), line)
            .is_ok()
    );
}

#[test]
fn a_saved_state_that_lies_is_refused() {
    use balloon_driver::release::Anonymous;
    use balloon_driver::{Balloon, Frame, Options, Run};
    let mut stage = Stage::new(Options::default(), 0);
    stage.driver.send_statistics(&[(4, 1)]).unwrap();
    assert!(stage.device.handle_queue_event(2).is_ok());
    let good = stage.device.save();
    let port = || Anonymous::new(stage.memory.clone()).unwrap();
    let mut foreign = good.clone();
    foreign.ballooned = vec![Run::new(Frame::new(u64::from(FRAMES) - 1), 2).unwrap()];
    assert!(Balloon::<Memory, _>::restore(Options::default(), port(), &foreign).is_err());
    let mut target = good.clone();
    target.target = FRAMES + 1;
    assert!(Balloon::<Memory, _>::restore(Options::default(), port(), &target).is_err());
    let mut parked = good.clone();
    parked.driver.as_mut().unwrap().parked_statistics = Some(128);
    let mut size = good.clone();
    size.driver.as_mut().unwrap().queues[0].size = 3;
    let mut address = good.clone();
    address.driver.as_mut().unwrap().queues[1].avail_ring = u64::MAX - 1;
    let mut heads = good.clone();
    heads.driver.as_mut().unwrap().queues[0].next_used = 9;
    let mut unparked = good.clone();
    unparked.driver.as_mut().unwrap().parked_statistics = None;
    let mut without_queue = good.clone();
    without_queue.driver.as_mut().unwrap().features &= !balloon_driver::features::STATISTICS;
    for (bad, words) in [
        (parked, "statistics buffer 128"),
        (size, "a queue of the saved balloon is invalid"),
        (address, "does not fit this device"),
        (
            heads,
            "queue 0 of the saved balloon misses 65527 buffers, but the device holds 0",
        ),
        (
            unparked,
            "queue 2 of the saved balloon misses 1 buffers, but the device holds 0",
        ),
        (without_queue, "statistics buffer 0"),
    ] {
        let mut device = Balloon::restore(Options::default(), port(), &bad).unwrap();
        let error = device
            .resume(&bad, stage.memory.clone(), stage.line.clone())
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_saved_round_of_hinting_that_lies_is_refused() {
    use balloon_driver::release::Anonymous;
    use balloon_driver::{Balloon, Frame, HintingPhase, RoundState, Run};
    let mut stage = Stage::new(all_on(), 0);
    stage.device.start_hinting().unwrap();
    let good = stage.device.save();
    let port = || Anonymous::new(stage.memory.clone()).unwrap();
    let round = |first| RoundState {
        acknowledged: None,
        complete: false,
        free: vec![Run::new(Frame::new(first), 1).unwrap()],
    };
    let restores = |phase: HintingPhase, last_command, negotiated: bool| {
        let mut state = good.clone();
        state.hinting.phase = phase;
        state.hinting.last_command = last_command;
        if !negotiated {
            state.driver = None;
        }
        Balloon::<Memory, _>::restore(all_on(), port(), &state).is_ok()
    };
    for on in [
        HintingPhase::Running as fn(RoundState) -> _,
        HintingPhase::Stopped,
    ] {
        assert!(restores(on(round(3000)), 2, true));
        assert!(!restores(on(round(u64::from(FRAMES))), 2, true), "not its memory");
        for reserved in [0, 1] {
            assert!(!restores(on(round(3000)), reserved, true));
        }
        assert!(!restores(on(round(3000)), 2, false), "no driver was asked");
    }
    assert!(restores(HintingPhase::Idle, 0, false));
    assert!(restores(HintingPhase::Idle, 7, false));
    assert!(!restores(HintingPhase::Done, 1, true));
}

#[test]
fn a_guest_that_never_stops_adding_cannot_hold_the_device() {
    /// Adds a buffer whenever the device gives frames back: as fast as any vCPU could.
    struct Endless {
        port: balloon_driver::release::Anonymous,
        memory: Memory,
        available: u64,
        next: u16,
    }
    impl balloon_driver::Release for Endless {
        fn backed(&self) -> Vec<balloon_driver::Run> {
            self.port.backed()
        }
        fn release(
            &mut self,
            runs: &[balloon_driver::Run],
            reason: balloon_driver::release::Reason,
        ) -> balloon_driver::release::Released {
            self.next = self.next.wrapping_add(1);
            self.memory
                .write_obj(self.next, GuestAddress(self.available + 2))
                .unwrap();
            self.port.release(runs, reason)
        }
    }
    let Stage {
        memory,
        mut driver,
        line,
        features,
        ..
    } = Stage::new(all_on(), 0);
    let available = driver.ring(Inflate).unwrap().layout().available().0;
    let port = balloon_driver::release::Anonymous::new(memory.clone()).unwrap();
    let port = Endless {
        port,
        memory: memory.clone(),
        available,
        next: 1,
    };
    let mut device = balloon_driver::Balloon::new(all_on(), port);
    let _ = device
        .activate(features, memory.clone(), driver.queues().unwrap(), line)
        .unwrap();
    driver.send_frames(Inflate, &[2000]).unwrap();
    // Every entry of the ring offers descriptor 0 again.
    let head: u16 = memory.read_obj(GuestAddress(available + 4)).unwrap();
    for at in 0..128u64 {
        memory
            .write_obj(head, GuestAddress(available + 4 + 2 * at))
            .unwrap();
    }
    assert_eq!(device.handle_queue_event(0).unwrap(), Progress::More);
    let buffers = device.counters().inflate_buffers;
    assert_eq!(device.handle_queue_event(0).unwrap(), Progress::More);
    assert!(
        device.counters().inflate_buffers > buffers,
        "every call serves some"
    );
}

#[test]
fn a_second_statistics_buffer_returns_the_first() {
    let mut stage = Stage::new(all_on(), 0);
    stage.driver.send_statistics(&[(4, 1)]).unwrap();
    stage.driver.send_statistics(&[(4, 2)]).unwrap();
    assert!(stage.device.handle_queue_event(2).is_ok());
    assert_eq!(stage.driver.reap(Statistics).unwrap(), 1);
    assert_eq!(stage.device.statistics().unwrap().values.free_memory, Some(2));
}

#[test]
fn a_report_of_readable_buffers_releases_nothing() {
    let mut stage = Stage::new(all_on(), 0);
    stage.memory.write_obj(3u64, GuestAddress(SPARE)).unwrap();
    let memory = stage.memory.clone();
    let buffer = Buffer {
        address: GuestAddress(SPARE),
        len: 4096,
        device_writes: false,
    };
    stage
        .driver
        .ring(Reporting)
        .unwrap()
        .add(&*memory, &[buffer])
        .unwrap();
    assert!(stage.device.handle_queue_event(4).is_ok());
    assert_eq!(stage.device.counters().malformed_chains, 1);
    assert_eq!(memory.read_obj::<u64>(GuestAddress(SPARE)).unwrap(), 3);
}
