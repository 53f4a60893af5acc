//! What the device owes its host and its driver besides moving frames: it tells the memory, asks before it interrupts,
//! works in bounded batches, and forgets everything at a reset.

mod stage;

use std::sync::{Arc, Mutex};

use balloon_driver::driver::{Buffer, Driver, Line};
use balloon_driver::features::{EVENT_IDX, QueueKind};
use balloon_driver::release::{Anonymous, Reason, Release, Released};
use balloon_driver::{
    ACTUAL_OFFSET, Balloon, CONFIG_SIZE, Frame, HintingPhase, POISON_OFFSET, Progress, Run, TARGET_OFFSET,
};
use stage::{Memory, Stage, all_on};
use vm_memory::{Bytes, GuestAddress};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;

/// What a device asked of its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Release(Vec<Run>),
    TakeBack(Vec<Run>),
}

/// Memory that writes down what it is asked for.
struct Recorder {
    port: Anonymous,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Release for Recorder {
    fn backed(&self) -> Vec<Run> {
        self.port.backed()
    }

    fn release(&mut self, runs: &[Run], reason: Reason) -> Released {
        self.calls.lock().unwrap().push(Call::Release(runs.to_vec()));
        self.port.release(runs, reason)
    }

    fn take_back(&mut self, runs: &[Run]) {
        self.calls.lock().unwrap().push(Call::TakeBack(runs.to_vec()));
    }
}

/// A device on memory that writes down, and its driver.
struct Scene {
    memory: Memory,
    device: Balloon<Memory, Recorder>,
    driver: Driver<Memory>,
    line: Arc<Line>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Scene {
    fn new(refused: u64) -> Self {
        let memory = stage::memory();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let port = Recorder {
            port: Anonymous::new(memory.clone()).unwrap(),
            calls: calls.clone(),
        };
        let mut device = Balloon::new(all_on(), port);
        let features = device.features() & !refused;
        let driver = Driver::new(memory.clone(), GuestAddress(0), features).unwrap();
        let line = Arc::new(Line::default());
        let queues = driver.queues().unwrap();
        let _ = device
            .activate(features, memory.clone(), queues, line.clone())
            .unwrap();
        Self {
            memory,
            device,
            driver,
            line,
            calls,
        }
    }

    fn send(&mut self, kind: QueueKind, frames: &[u32]) {
        let sent = self.driver.send_frames(kind, frames).unwrap();
        assert_eq!(
            self.device.handle_queue_event(sent.queue).unwrap(),
            Progress::Done
        );
        self.driver.reap(kind).unwrap();
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

fn run(first: u64, count: u64) -> Run {
    Run::new(Frame::new(first), count).unwrap()
}

#[test]
fn the_memory_hears_of_every_frame_that_leaves_the_balloon() {
    let mut scene = Scene::new(0);
    scene.send(QueueKind::Inflate, &[3000, 3001, 3005]);
    assert_eq!(scene.calls(), [Call::Release(vec![run(3000, 2), run(3005, 1)])]);
    scene.send(QueueKind::Deflate, &[3001]);
    assert_eq!(scene.calls(), [Call::TakeBack(vec![run(3001, 1)])]);
    scene.device.reset();
    let rest = vec![run(3000, 1), run(3005, 1)];
    assert_eq!(scene.calls(), [Call::TakeBack(rest)], "the balloon pops");
    scene.device.reset();
    assert_eq!(scene.calls(), [], "nothing is left to pop");
    let port = Recorder {
        port: Anonymous::new(scene.memory.clone()).unwrap(),
        calls: scene.calls.clone(),
    };
    Release::take_back(&mut Box::new(port), &[run(3000, 1)]);
    assert_eq!(
        scene.calls(),
        [Call::TakeBack(vec![run(3000, 1)])],
        "in a box, too"
    );
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    for (flags, interrupted) in [
        (0, true),
        (NO_INTERRUPT, false),
        (NO_INTERRUPT | 0x8000, false),
        (2, true),
    ] {
        let mut scene = Scene::new(EVENT_IDX);
        let mut raised = Vec::new();
        for kind in [QueueKind::Inflate, QueueKind::Deflate, QueueKind::Statistics] {
            let available = scene.driver.ring(kind).unwrap().layout().available();
            scene.memory.write_obj::<u16>(flags, available).unwrap();
            if kind == QueueKind::Statistics {
                let sent = scene.driver.send_statistics(&[(4, 1)]).unwrap();
                assert_eq!(
                    scene.device.handle_queue_event(sent.queue).unwrap(),
                    Progress::Done
                );
                scene.device.request_statistics().unwrap();
                scene.driver.reap(kind).unwrap();
            } else {
                scene.send(kind, &[3000]);
            }
            raised.push(scene.line.take_queues() != 0);
            assert_eq!(scene.driver.outstanding(kind), 0, "they come back all the same");
        }
        assert_eq!(raised, [interrupted; 3], "flags {flags:#x}");
    }
}

/// Fills a queue: `count` buffers, each of `each`.
fn fill(scene: &mut Scene, kind: QueueKind, count: usize, each: &[Buffer]) -> u16 {
    let memory = scene.memory.clone();
    let ring = scene.driver.ring(kind).unwrap();
    for _ in 0..count {
        ring.add(&*memory, each).unwrap();
    }
    scene.driver.queue_number(kind).unwrap()
}

#[test]
fn frame_numbers_are_worked_off_before_their_list_grows_without_bound() {
    let mut scene = Scene::new(0);
    // The largest buffer the device reads, 128 times: two million numbers.
    let numbers: Vec<u8> = (0..1u32 << 14)
        .flat_map(|at| (3000 + at % 64).to_le_bytes())
        .collect();
    let address = GuestAddress(2000 * 4096);
    scene.memory.write_slice(&numbers, address).unwrap();
    let buffer = Buffer {
        address,
        len: numbers.len() as u32,
        device_writes: false,
    };
    let queue = fill(&mut scene, QueueKind::Inflate, 128, &[buffer]);
    let mut events = 0;
    loop {
        let before = scene.device.counters().inflate_buffers;
        let progress = scene.device.handle_queue_event(queue).unwrap();
        events += 1;
        let buffers = scene.device.counters().inflate_buffers - before;
        let batches = scene.calls().len() as u64;
        assert!(
            batches > 0 && buffers / batches <= 4,
            "{buffers} buffers in {batches} batches"
        );
        if progress == Progress::Done {
            break;
        }
    }
    assert!(events > 1, "an event is bounded, too");
    assert_eq!(scene.driver.reap(QueueKind::Inflate).unwrap(), 128);
    assert_eq!(scene.device.ballooned(), 64);
}

#[test]
fn reported_ranges_are_worked_off_before_their_list_grows_without_bound() {
    let mut scene = Scene::new(0);
    // 128 tables of 128 descriptors each: 16,384 ranges, all alike.
    let table = GuestAddress(2000 * 4096);
    for at in 0..128u64 {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&(3000u64 * 4096).to_le_bytes());
        entry[8..12].copy_from_slice(&4096u32.to_le_bytes());
        let (flags, next) = if at < 127 { (3u16, at as u16 + 1) } else { (2, 0) };
        entry[12..14].copy_from_slice(&flags.to_le_bytes());
        entry[14..].copy_from_slice(&next.to_le_bytes());
        scene
            .memory
            .write_slice(&entry, GuestAddress(table.0 + 16 * at))
            .unwrap();
    }
    let memory = scene.memory.clone();
    let ring = scene.driver.ring(QueueKind::Reporting).unwrap();
    for head in 0..128 {
        let indirect = virtio_queue::desc::split::Descriptor::new(table.0, 128 * 16, 4, 0);
        ring.write_descriptor(&*memory, head, indirect).unwrap();
        ring.offer(&*memory, head).unwrap();
    }
    let queue = scene.driver.queue_number(QueueKind::Reporting).unwrap();
    let mut batches = 0;
    while scene.device.handle_queue_event(queue).unwrap() == Progress::More {
        batches += scene.calls().len();
    }
    batches += scene.calls().len();
    let counters = scene.device.counters();
    assert_eq!((counters.report_buffers, counters.malformed_chains), (128, 0));
    assert_eq!(batches, 4, "4096 ranges a batch");
}

#[test]
fn a_reset_leaves_a_device_as_new_but_for_its_target() {
    let mut scene = Scene::new(0);
    let new = scene.device.save();
    scene.device.set_target(70).unwrap();
    scene.device.write_config(ACTUAL_OFFSET, &3u32.to_le_bytes());
    scene.device.write_config(POISON_OFFSET, &0xaau32.to_le_bytes());
    scene.send(QueueKind::Inflate, &[3000, 3001]);
    let sent = scene.driver.send_statistics(&[(4, 1)]).unwrap();
    assert_eq!(
        scene.device.handle_queue_event(sent.queue).unwrap(),
        Progress::Done
    );
    scene.device.start_hinting().unwrap();
    let round = scene.device.save().hinting.last_command;
    scene.driver.send_hint_command(round).unwrap();
    let sent = scene.driver.send_hint(run(3500, 5)).unwrap();
    assert_eq!(
        scene.device.handle_queue_event(sent.queue).unwrap(),
        Progress::Done
    );
    assert_eq!(scene.device.hinted().unwrap().0.len(), 5);
    assert!(scene.device.last_heard().is_some() && scene.device.statistics().is_some());
    scene.device.reset();

    let mut expected = new;
    expected.target = 70;
    expected.driver = None;
    expected.hinting.last_command = round;
    assert_eq!(expected.hinting.phase, HintingPhase::Idle);
    assert_eq!(scene.device.save(), expected);
    let mut config = [0xff; CONFIG_SIZE];
    scene.device.read_config(0, &mut config);
    let mut read = [0; CONFIG_SIZE];
    read[TARGET_OFFSET as usize] = 70;
    assert_eq!(config, read);
    assert!(scene.device.hinted().is_none() && scene.device.statistics().is_none());
    assert!(scene.device.last_heard().is_none() && !scene.device.is_active());
    // Nothing to finish, either.
    scene.device.finish_hinting().unwrap();
    assert_eq!(scene.device.save(), expected);
}

#[test]
fn notifications_of_queues_that_are_not_there_are_counted_and_ignored() {
    let mut scene = Scene::new(balloon_driver::features::REPORTING);
    for queue in [4, 5, u16::MAX] {
        assert_eq!(scene.device.handle_queue_event(queue).unwrap(), Progress::Done);
    }
    assert_eq!(scene.device.counters().ignored_events, 3);
    assert_eq!(scene.device.handle_queue_event(0).unwrap(), Progress::Done);
    assert_eq!(
        scene.device.counters().ignored_events,
        3,
        "an empty queue is there"
    );
}

#[test]
fn the_length_of_the_configuration_follows_what_is_offered() {
    use balloon_driver::{Offer, Options};
    for (free_page_hinting, page_poison, len) in [
        (Offer::Off, Offer::Off, 8),
        (Offer::On, Offer::Off, 12),
        (Offer::Off, Offer::On, 16),
        (Offer::On, Offer::On, 16),
    ] {
        let mut options = Options::default();
        options.free_page_hinting = free_page_hinting;
        options.page_poison = page_poison;
        let device = Balloon::<Memory, _>::new(options, Anonymous::new(stage::memory()).unwrap());
        assert_eq!(device.config_len(), len, "{options:?}");
    }
}

#[test]
fn the_driver_half_refuses_buffers_that_linux_never_sends() {
    let mut scene = Scene::new(0);
    for count in [0, 257] {
        let frames = vec![3000; count];
        assert!(
            scene.driver.send_frames(QueueKind::Inflate, &frames).is_err(),
            "{count}"
        );
    }
    for count in [0, 33] {
        let runs = vec![run(3000, 1); count];
        assert!(scene.driver.send_report(&runs).is_err(), "{count}");
    }
    // 103 statistics take 1030 bytes, and a buffer has 1024.
    for count in [0, 103] {
        let statistics = vec![(0, 0); count];
        assert!(scene.driver.send_statistics(&statistics).is_err(), "{count}");
    }
    let memory = scene.memory.clone();
    let ring = scene.driver.ring(QueueKind::Inflate).unwrap();
    assert!(ring.add(&*memory, &[]).is_err(), "a chain of no buffers");
    scene.send(QueueKind::Inflate, &[3000; 256]);
    scene.device.set_target(1).unwrap();
    assert_eq!(scene.line.raised(), 2, "a buffer and a target");
}

#[test]
fn every_buffer_is_counted_by_its_queue() {
    let mut scene = Scene::new(0);
    scene.send(QueueKind::Inflate, &[3000]);
    scene.send(QueueKind::Deflate, &[3000]);
    let sent = [
        scene.driver.send_statistics(&[(4, 1)]).unwrap(),
        scene.driver.send_hint_command(7).unwrap(),
        scene.driver.send_report(&[run(3000, 1)]).unwrap(),
    ];
    for sent in sent {
        assert_eq!(
            scene.device.handle_queue_event(sent.queue).unwrap(),
            Progress::Done
        );
    }
    let seen = scene.device.counters();
    let buffers = [
        seen.inflate_buffers,
        seen.deflate_buffers,
        seen.statistics_buffers,
        seen.hint_buffers,
        seen.report_buffers,
    ];
    assert_eq!((buffers, seen.oversized_buffers), ([1; 5], 0));
    // One statistic more than the device reads.
    let mut scene = Scene::new(0);
    let large = Buffer {
        address: GuestAddress(3000 * 4096),
        len: 257 * 10,
        device_writes: false,
    };
    let queue = fill(&mut scene, QueueKind::Statistics, 1, &[large]);
    assert_eq!(scene.device.handle_queue_event(queue).unwrap(), Progress::Done);
    assert_eq!(scene.device.counters().oversized_buffers, 1);
}

#[test]
fn a_chain_that_makes_no_sense_counts_once_on_whatever_queue() {
    for (kind, len, device_writes) in [
        (QueueKind::Inflate, 6, false),
        (QueueKind::Deflate, 4, true),
        (QueueKind::Statistics, 10, true),
        (QueueKind::Hinting, 3, false),
        (QueueKind::Reporting, 4096, false),
    ] {
        let mut scene = Scene::new(0);
        let buffer = Buffer {
            address: GuestAddress(3000 * 4096),
            len,
            device_writes,
        };
        let queue = fill(&mut scene, kind, 3, &[buffer]);
        assert_eq!(scene.device.handle_queue_event(queue).unwrap(), Progress::Done);
        assert_eq!(scene.device.counters().malformed_chains, 3, "{kind:?}");
    }
}

#[test]
fn a_device_can_be_printed() {
    let Stage { mut device, .. } = Stage::new(all_on(), 0);
    device.set_target(2748).unwrap();
    let text = format!("{device:?}");
    assert!(text.contains("Balloon") && text.contains("2748"), "{text}");
    assert!(text.len() < 4000, "counts, not frames: {} bytes", text.len());
}
