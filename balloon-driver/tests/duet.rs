//! Driver half against device half, in random order: they converge, and nothing is lost on the way.

mod stage;

use balloon_driver::driver::{Driver, Guest, GuestError, Line};
use balloon_driver::features::{EVENT_IDX, INDIRECT_DESC, QueueKind};
use balloon_driver::release::Anonymous;
use balloon_driver::{Balloon, Options, POISON_OFFSET, Progress, StatisticsRequest};
use proptest::prelude::*;
use stage::{FRAMES, Memory, Stage, all_on, spare_frames};
use std::collections::BTreeSet;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// One thing that happens next.
#[derive(Debug, Clone, Copy)]
enum Event {
    Target(u64),
    Step,
    Kick,
    Allocate(usize),
    Release(usize),
    Report(usize),
    AskStatistics,
    Reboot,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        2 => (0..u64::from(FRAMES)).prop_map(Event::Target),
        8 => Just(Event::Step),
        6 => Just(Event::Kick),
        3 => (1..600usize).prop_map(Event::Allocate),
        2 => (1..600usize).prop_map(Event::Release),
        2 => (1..200usize).prop_map(Event::Report),
        1 => Just(Event::AskStatistics),
        1 => Just(Event::Reboot),
    ];
    prop::collection::vec(event, 1..120)
}

/// The guest reboots: the device is reset and meets a new driver in the same memory.
fn reboot(memory: &Memory, device: &mut Balloon<Memory, Anonymous>, features: u64) -> Guest<Memory> {
    device.reset();
    let line = Arc::new(Line::default());
    let driver = Driver::new(memory.clone(), GuestAddress(0), features).unwrap();
    let _ = device
        .activate(features, memory.clone(), driver.queues().unwrap(), line.clone())
        .unwrap();
    Guest::new(memory.clone(), driver, line, spare_frames(features).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_schedule_converges_and_no_frame_in_use_loses_its_contents(
        events in events(),
        refused in prop_oneof![Just(0), Just(EVENT_IDX), Just(INDIRECT_DESC), Just(EVENT_IDX | INDIRECT_DESC)],
        last in 0..u64::from(FRAMES),
    ) {
        let stage = Stage::new(Options::default(), refused);
        let (features, memory) = (stage.features, stage.memory.clone());
        let (mut guest, mut device) = stage.into_guest();
        for event in events {
            match event {
                Event::Target(frames) => device.set_target(frames).unwrap(),
                Event::Step => guest.step(&mut device).unwrap(),
                Event::Kick => guest.kick(&mut device).unwrap(),
                Event::Allocate(count) => guest.allocate(count).unwrap(),
                Event::Release(count) => guest.release(count).unwrap(),
                Event::Report(count) => guest.report(count).unwrap(),
                Event::AskStatistics => { device.request_statistics().unwrap(); }
                Event::Reboot => {
                    guest = reboot(&memory, &mut device, features);
                    prop_assert_eq!(device.ballooned(), 0, "the balloon pops");
                }
            }
            guest.check().unwrap();
        }
        // Everything the guest has is free: now it must reach any target that its memory allows.
        guest.release(usize::MAX).unwrap();
        let last = last.min(spare_frames(features).len() as u64);
        device.set_target(last).unwrap();
        for _ in 0..200 {
            guest.kick(&mut device).unwrap();
            guest.step(&mut device).unwrap();
        }
        prop_assert!(guest.is_idle());
        prop_assert_eq!((guest.ballooned(), device.ballooned(), device.actual()), (last, last, last));
        let held: BTreeSet<u64> = guest.ballooned_frames().iter().map(|&frame| u64::from(frame)).collect();
        let known: BTreeSet<u64> =
            device.ballooned_frames().runs().iter().flat_map(|run| run.first().number()..run.end().number()).collect();
        prop_assert_eq!(held.len() as u64, last, "no frame is in the balloon twice");
        prop_assert_eq!(held, known);
        let counters = device.counters();
        prop_assert_eq!(
            (counters.malformed_chains, counters.foreign, counters.never_inflated, counters.already_inflated),
            (0, 0, 0, 0)
        );
        prop_assert_eq!(counters.inflated, counters.deflated + counters.popped + last);
    }

    #[test]
    fn a_device_saved_at_any_moment_goes_on_elsewhere(events in events(), target in 1..2000u64) {
        let stage = Stage::new(Options::default(), 0);
        let (memory, line) = (stage.memory.clone(), stage.line.clone());
        let (mut guest, mut device) = stage.into_guest();
        for event in events {
            match event {
                Event::Target(frames) => device.set_target(frames).unwrap(),
                Event::Step => guest.step(&mut device).unwrap(),
                Event::Kick => guest.kick(&mut device).unwrap(),
                _ => {}
            }
        }
        let state = device.save();
        let port = Anonymous::new(memory.clone()).unwrap();
        let mut restored = Balloon::restore(Options::default(), port, &state).unwrap();
        let _ = restored.resume(&state, memory, line).unwrap();
        drop(device);
        for queue in 0..4 {
            while restored.handle_queue_event(queue).unwrap() == Progress::More {}
        }
        restored.set_target(target).unwrap();
        for _ in 0..100 {
            guest.step(&mut restored).unwrap();
            guest.kick(&mut restored).unwrap();
        }
        prop_assert_eq!((guest.ballooned(), restored.ballooned()), (target, target));
    }
}

#[test]
fn the_first_statistics_are_kept_and_returning_them_asks_for_more() {
    let Stage {
        mut device,
        mut driver,
        line,
        ..
    } = Stage::new(all_on(), 0);
    assert_eq!(device.request_statistics().unwrap(), StatisticsRequest::Pending);
    let sent = driver.send_statistics(&[(4, 100), (6, 200), (77, 1)]).unwrap();
    assert!(device.handle_queue_event(sent.queue).is_ok());
    assert_eq!(driver.reap(QueueKind::Statistics).unwrap(), 0, "parked");
    assert_eq!(line.take_queues(), 0);
    let values = device.statistics().unwrap().values;
    assert_eq!(
        (values.free_memory, values.available_memory),
        (Some(100), Some(200))
    );
    assert_eq!(device.counters().unknown_statistics, 1);
    assert_eq!(device.request_statistics().unwrap(), StatisticsRequest::Sent);
    assert_eq!(line.take_queues(), 1 << sent.queue);
    assert_eq!(driver.reap(QueueKind::Statistics).unwrap(), 1);
    assert_eq!(device.request_statistics().unwrap(), StatisticsRequest::Pending);
}

#[test]
fn a_poison_value_written_before_driver_ok_keeps_reported_pages() {
    use balloon_driver::{FRAME_SIZE, Frame, Run};
    for (poison, expected) in [(0u32, 0u64), (0xaaaa_aaaa, 0x55)] {
        let memory = stage::memory();
        let mut device = Balloon::new(all_on(), Anonymous::new(memory.clone()).unwrap());
        let features = device.features();
        let mut driver = Driver::new(memory.clone(), GuestAddress(0), features).unwrap();
        // Linux: probe writes the value, then virtio_device_ready.
        device.write_config(POISON_OFFSET, &poison.to_le_bytes());
        let _ = device
            .activate(
                features,
                memory.clone(),
                driver.queues().unwrap(),
                Arc::new(Line::default()),
            )
            .unwrap();
        let place = GuestAddress(3000 * FRAME_SIZE);
        memory.write_obj(0x55u64, place).unwrap();
        let sent = driver
            .send_report(&[Run::new(Frame::new(3000), 2).unwrap()])
            .unwrap();
        assert!(device.handle_queue_event(sent.queue).is_ok());
        assert_eq!(driver.reap(QueueKind::Reporting).unwrap(), 1);
        assert_eq!(memory.read_obj::<u64>(place).unwrap(), expected);
        assert_eq!(device.counters().kept_for_poison, if poison == 0 { 0 } else { 2 });
    }
}

#[test]
fn hints_count_only_in_their_own_round() {
    use balloon_driver::{Frame, HINT_COMMAND_OFFSET, HINT_DONE, HINT_STOP, Run};
    let Stage {
        mut device,
        mut driver,
        memory,
        line,
        ..
    } = Stage::new(all_on(), 0);
    let run = |first| Run::new(Frame::new(first), 512).unwrap();
    let command = |device: &Balloon<Memory, Anonymous>| {
        let mut bytes = [0; 4];
        device.read_config(HINT_COMMAND_OFFSET, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    driver.send_hint(run(2048)).unwrap();
    device.start_hinting().unwrap();
    assert!(line.take_config());
    let round = command(&device);
    driver.send_hint_command(round).unwrap();
    driver.send_hint(run(3072)).unwrap();
    let sent = driver.send_hint_command(HINT_STOP).unwrap();
    memory.write_obj(7u64, GuestAddress(3072 * 4096)).unwrap();
    assert_eq!(device.handle_queue_event(sent.queue).unwrap(), Progress::Done);
    let (free, complete) = device.hinted().unwrap();
    assert_eq!((free.runs(), complete), (vec![run(3072)], true));
    assert_eq!(device.counters().stale_hints, 512);
    assert_eq!(
        memory.read_obj::<u64>(GuestAddress(3072 * 4096)).unwrap(),
        7,
        "hints release nothing"
    );
    assert_eq!(driver.reap(QueueKind::Hinting).unwrap(), 4);
    device.stop_hinting().unwrap();
    assert_eq!(command(&device), HINT_STOP);
    assert_eq!(
        device.hinted().unwrap().0.len(),
        512,
        "the guest still leaves them alone"
    );
    device.finish_hinting().unwrap();
    assert_eq!(command(&device), HINT_DONE);
    assert!(line.take_config());
    device.finish_hinting().unwrap();
    assert!(!line.take_config(), "the driver knows");
    // The guest uses them from here on, whatever it lists.
    driver.send_hint_command(round).unwrap();
    driver.send_hint(run(3072)).unwrap();
    assert_eq!(device.handle_queue_event(sent.queue).unwrap(), Progress::Done);
    assert!(device.hinted().is_none());
    assert_eq!(device.counters().stale_hints, 1024);
    device.start_hinting().unwrap();
    assert_ne!(command(&device), round);
    assert!(device.hinted().unwrap().0.is_empty());
}

#[test]
fn a_driver_without_hinting_is_not_asked_for_hints() {
    use balloon_driver::HINT_COMMAND_OFFSET;
    use balloon_driver::features::FREE_PAGE_HINT;
    let Stage { mut device, line, .. } = Stage::new(all_on(), FREE_PAGE_HINT);
    device.start_hinting().unwrap();
    device.stop_hinting().unwrap();
    device.finish_hinting().unwrap();
    let mut bytes = [0xff; 4];
    device.read_config(HINT_COMMAND_OFFSET, &mut bytes);
    assert_eq!((bytes, line.take_config()), ([0; 4], false));
    assert!(device.hinted().is_none());
}

/// Linux queues its first statistics in the middle of its probe. A transport whose kicks are function calls
/// delivers the notification there and then, to a device without a driver.
#[test]
fn buffers_queued_before_driver_ok_need_no_second_notification() {
    let memory = stage::memory();
    let mut device = Balloon::new(all_on(), Anonymous::new(memory.clone()).unwrap());
    let features = device.features();
    let mut driver = Driver::new(memory.clone(), GuestAddress(0), features).unwrap();
    let line = Arc::new(Line::default());
    let queues = driver.queues().unwrap();
    let kicks = [
        driver.send_statistics(&[(4, 100)]).unwrap(),
        driver.send_frames(QueueKind::Inflate, &[2000, 2001]).unwrap(),
        driver.send_frames(QueueKind::Deflate, &[2001]).unwrap(),
        driver
            .send_report(&[balloon_driver::Run::within(0x80_0000, 0x20_0000).unwrap()])
            .unwrap(),
    ];
    for kick in kicks {
        assert!(kick.notify);
        assert_eq!(device.handle_queue_event(kick.queue).unwrap(), Progress::Done);
    }
    assert_eq!(device.counters().ignored_events, 4);
    let progress = device.activate(features, memory, queues, line.clone()).unwrap();
    assert_eq!(progress, Progress::Done);
    assert_eq!(device.statistics().unwrap().values.free_memory, Some(100));
    assert_eq!((device.ballooned(), device.counters().reported), (1, 512));
    for kind in [QueueKind::Inflate, QueueKind::Deflate, QueueKind::Reporting] {
        assert_eq!(driver.reap(kind).unwrap(), 1, "{kind:?}");
    }
    assert_eq!(
        line.take_queues(),
        0b1_0011,
        "the driver is told of what came back"
    );
    assert_eq!(device.request_statistics().unwrap(), StatisticsRequest::Sent);
}

#[test]
fn a_driver_that_refuses_statistics_finds_reporting_at_the_next_number() {
    use balloon_driver::features::STATISTICS;
    let stage = Stage::new(Options::default(), STATISTICS);
    assert_eq!(stage.driver.queue_number(QueueKind::Reporting), Some(2));
    let mut driver = stage.driver;
    let mut device = stage.device;
    let sent = driver
        .send_report(&[balloon_driver::Run::within(0x80_0000, 0x20_0000).unwrap()])
        .unwrap();
    assert!(device.handle_queue_event(sent.queue).is_ok());
    assert_eq!(device.counters().reported, 512);
}

#[test]
fn a_guest_notices_that_two_of_its_frames_changed_places() {
    let stage = Stage::new(all_on(), 0);
    let memory = stage.memory.clone();
    let (mut guest, _) = stage.into_guest();
    guest.allocate(2).unwrap();
    guest.check().unwrap();
    let [first, second] = [FRAMES - 2, FRAMES - 1].map(|frame| GuestAddress(u64::from(frame) * 4096));
    let words: [u64; 2] = [first, second].map(|address| memory.read_obj(address).unwrap());
    memory.write_obj(words[1], first).unwrap();
    memory.write_obj(words[0], second).unwrap();
    assert!(matches!(guest.check(), Err(GuestError::Lost { .. })));
}

/// The frames of two pieces of memory with a hole between them, as PC guests above 3 GiB have.
#[test]
fn memory_with_a_hole_is_one_balloon() {
    let ranges = [(GuestAddress(0), 8 << 20), (GuestAddress(1 << 32), 8 << 20)];
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
    let mut device = Balloon::new(Options::default(), Anonymous::new(memory.clone()).unwrap());
    let features = device.features();
    let mut driver = Driver::new(memory.clone(), GuestAddress(0), features).unwrap();
    let _ = device
        .activate(
            features,
            memory.clone(),
            driver.queues().unwrap(),
            Arc::new(Line::default()),
        )
        .unwrap();
    let high = (1u32 << 20) + 5;
    memory
        .write_obj(9u64, GuestAddress(u64::from(high) << 12))
        .unwrap();
    let sent = driver
        .send_frames(QueueKind::Inflate, &[high, 2047, 2048, 3000])
        .unwrap();
    assert!(device.handle_queue_event(sent.queue).is_ok());
    assert_eq!((device.ballooned(), device.counters().foreign), (2, 2));
    assert_eq!(
        memory
            .read_obj::<u64>(GuestAddress(u64::from(high) << 12))
            .unwrap(),
        0
    );
}
