//! A device that is saved and goes on elsewhere behaves as if it had stayed.

mod stage;

use std::sync::Arc;

use balloon_driver::driver::{Guest, Line};
use balloon_driver::features::QueueKind;
use balloon_driver::release::Anonymous;
use balloon_driver::{
    Balloon, BalloonState, CONFIG_SIZE, Frame, HINT_COMMAND_OFFSET, HINT_DONE, HINT_STOP, HintingPhase,
    POISON_OFFSET, Progress, Run, StatisticsRequest,
};
use proptest::prelude::*;
use stage::{FRAMES, Memory, Stage, all_on};
use vm_memory::GuestAddress;

type Device = Balloon<Memory, Anonymous>;

/// One thing that happens next.
#[derive(Debug, Clone, Copy)]
enum Event {
    Target(u64),
    Step,
    Allocate(usize),
    Release(usize),
    Report(usize),
    SendStatistics(u64),
    AskStatistics,
    StartHinting,
    StopHinting,
    FinishHinting,
    /// The guest acknowledges the round it reads.
    Acknowledge,
    Hint(u64, u64),
    EndOfHints,
    Poison(u32),
    BreakRing(QueueKind),
    Reboot,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let kind = prop_oneof![
        Just(QueueKind::Inflate),
        Just(QueueKind::Statistics),
        Just(QueueKind::Hinting)
    ];
    let event = prop_oneof![
        20 => Just(Event::Step),
        5 => (0..u64::from(FRAMES)).prop_map(Event::Target),
        3 => (1..600usize).prop_map(Event::Allocate),
        3 => (1..600usize).prop_map(Event::Release),
        3 => (1..200usize).prop_map(Event::Report),
        3 => any::<u64>().prop_map(Event::SendStatistics),
        3 => Just(Event::AskStatistics),
        3 => Just(Event::StartHinting),
        2 => Just(Event::StopHinting),
        2 => Just(Event::FinishHinting),
        5 => Just(Event::Acknowledge),
        6 => (2000..u64::from(FRAMES), 1..600u64).prop_map(|(first, count)| Event::Hint(first, count)),
        2 => Just(Event::EndOfHints),
        2 => any::<u32>().prop_map(Event::Poison),
        1 => kind.prop_map(Event::BreakRing),
        1 => Just(Event::Reboot),
    ];
    prop::collection::vec(event, 1..80)
}

/// A guest and its device, in memory of their own.
struct World {
    memory: Memory,
    line: Arc<Line>,
    guest: Guest<Memory>,
    device: Device,
}

/// State, config space, what was hinted and whether that is all, whether it is active, frames that the guest has free.
type Seen = (
    BalloonState,
    [u8; CONFIG_SIZE],
    Option<(Vec<Run>, bool)>,
    bool,
    usize,
);

impl World {
    fn new() -> Self {
        let stage = Stage::new(all_on(), 0);
        let (memory, line) = (stage.memory.clone(), stage.line.clone());
        let (guest, device) = stage.into_guest();
        Self {
            memory,
            line,
            guest,
            device,
        }
    }

    fn command(&self) -> u32 {
        let mut bytes = [0; 4];
        self.device.read_config(HINT_COMMAND_OFFSET, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn happen(&mut self, event: Event) {
        let (guest, device) = (&mut self.guest, &mut self.device);
        match event {
            Event::Target(frames) => device.set_target(frames).unwrap(),
            // What breaks is the guest's own doing.
            Event::Step => guest.step(device).unwrap(),
            Event::Allocate(count) => guest.allocate(count).unwrap(),
            Event::Release(count) => guest.release(count).unwrap(),
            Event::Report(count) => guest.report(count).unwrap(),
            Event::SendStatistics(value) => {
                let driver = guest.driver();
                driver.reap(QueueKind::Statistics).unwrap();
                if driver.outstanding(QueueKind::Statistics) == 0 {
                    driver.send_statistics(&[(4, value)]).unwrap();
                }
            }
            Event::AskStatistics => drop(device.request_statistics()),
            Event::StartHinting => device.start_hinting().unwrap(),
            Event::StopHinting => device.stop_hinting().unwrap(),
            Event::FinishHinting => device.finish_hinting().unwrap(),
            Event::Acknowledge => {
                let command = self.command();
                self.hint(|driver| driver.send_hint_command(command));
            }
            Event::Hint(first, count) => {
                let run = Run::new(Frame::new(first), count).unwrap();
                self.hint(|driver| driver.send_hint(run));
            }
            Event::EndOfHints => self.hint(|driver| driver.send_hint_command(HINT_STOP)),
            Event::Poison(value) => device.write_config(POISON_OFFSET, &value.to_le_bytes()),
            Event::BreakRing(kind) => {
                guest
                    .driver()
                    .ring(kind)
                    .unwrap()
                    .offer(&*self.memory, 500)
                    .unwrap();
            }
            Event::Reboot => self.reboot(),
        }
    }

    fn hint(
        &mut self,
        send: impl FnOnce(
            &mut balloon_driver::driver::Driver<Memory>,
        ) -> Result<balloon_driver::driver::Sent, balloon_driver::driver::DriverError>,
    ) {
        let driver = self.guest.driver();
        driver.reap(QueueKind::Hinting).unwrap();
        // A device whose ring is broken gives nothing back.
        if driver.outstanding(QueueKind::Hinting) < 100 {
            send(driver).unwrap();
        }
    }

    /// The device stays and handles an event of every queue, as the one that moves does.
    fn stay(&mut self) {
        for queue in 0..5 {
            while let Ok(Progress::More) = self.device.handle_queue_event(queue) {}
        }
    }

    /// The device goes on in another process.
    fn move_elsewhere(&mut self) {
        let state = self.device.save();
        self.device = restored(&state, &self.memory, &self.line);
    }

    fn reboot(&mut self) {
        self.device.reset();
        self.line = Arc::new(Line::default());
        let features = self.device.features();
        let driver =
            balloon_driver::driver::Driver::new(self.memory.clone(), GuestAddress(0), features).unwrap();
        let queues = driver.queues().unwrap();
        let _ = self
            .device
            .activate(features, self.memory.clone(), queues, self.line.clone())
            .unwrap();
        let frames = stage::spare_frames(features).collect();
        self.guest = Guest::new(self.memory.clone(), driver, self.line.clone(), frames);
    }

    /// All that a host and a guest can tell devices apart by, but for what the host only observes.
    fn seen(&self) -> Seen {
        let mut config = [0; CONFIG_SIZE];
        self.device.read_config(0, &mut config);
        let hinted = self
            .device
            .hinted()
            .map(|(free, complete)| (free.runs(), complete));
        let free = self.guest.free() as usize;
        (self.device.save(), config, hinted, self.device.is_active(), free)
    }
}

/// The device that `state` was saved from; the broken ring it may meet has stopped it.
fn restored(state: &BalloonState, memory: &Memory, line: &Arc<Line>) -> Device {
    let port = Anonymous::new(memory.clone()).unwrap();
    let mut device = Balloon::restore(all_on(), port, state).unwrap();
    let _ = device.resume(state, memory.clone(), line.clone());
    device
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn a_device_saved_and_restored_after_every_event_equals_one_that_stays(events in events()) {
        let (mut stays, mut moves) = (World::new(), World::new());
        for event in events {
            stays.happen(event);
            moves.happen(event);
            stays.stay();
            moves.move_elsewhere();
            prop_assert_eq!(stays.seen(), moves.seen(), "after {:?}", event);
            stays.guest.check().unwrap();
            moves.guest.check().unwrap();
        }
    }
}

#[test]
fn a_round_of_hinting_goes_on_across_a_snapshot() {
    let mut world = World::new();
    world.device.start_hinting().unwrap();
    let round = world.command();
    world.happen(Event::Acknowledge);
    world.happen(Event::Hint(3000, 10));
    world.stay();
    world.move_elsewhere();
    assert_eq!(world.command(), round, "the driver reads the round it is in");
    world.happen(Event::Hint(3010, 10));
    world.happen(Event::EndOfHints);
    world.stay();
    let (free, complete) = world.device.hinted().unwrap();
    let listed = Run::new(Frame::new(3000), 20).unwrap();
    assert_eq!((free.runs(), complete), (vec![listed], true));
    world.line.take_config();
    world.device.finish_hinting().unwrap();
    assert_eq!((world.command(), world.line.take_config()), (HINT_DONE, true));
    world.move_elsewhere();
    assert_eq!(world.command(), HINT_DONE);
    world.device.start_hinting().unwrap();
    assert!(![HINT_STOP, HINT_DONE, round].contains(&world.command()));
}

#[test]
fn no_number_of_a_round_comes_again_whatever_lies_between() {
    let mut world = World::new();
    let mut seen = vec![HINT_STOP, HINT_DONE];
    let between: [&[Event]; 5] = [
        &[],
        &[Event::StopHinting],
        &[Event::FinishHinting],
        &[Event::Reboot],
        &[Event::StopHinting, Event::FinishHinting, Event::Reboot],
    ];
    for events in between {
        world.device.start_hinting().unwrap();
        let command = world.command();
        assert!(!seen.contains(&command), "{command} again, before {events:?}");
        seen.push(command);
        for event in events {
            world.happen(*event);
            world.move_elsewhere();
        }
    }
}

#[test]
fn a_device_with_a_broken_ring_stays_broken() {
    let mut world = World::new();
    world.happen(Event::BreakRing(QueueKind::Inflate));
    world.stay();
    assert!(!world.device.is_active());
    world.move_elsewhere();
    assert!(!world.device.is_active());
    assert_eq!(world.device.handle_queue_event(0).unwrap(), Progress::Done);
    assert_eq!(
        world.device.request_statistics().unwrap(),
        StatisticsRequest::Unavailable
    );
    world.reboot();
    assert!(world.device.is_active());
}

#[test]
fn a_statistics_buffer_is_held_across_a_snapshot() {
    let mut world = World::new();
    world.happen(Event::SendStatistics(5));
    world.stay();
    world.move_elsewhere();
    assert!(world.device.statistics().is_none(), "asked for again");
    assert_eq!(
        world.device.request_statistics().unwrap(),
        StatisticsRequest::Sent
    );
    world.happen(Event::SendStatistics(6));
    world.stay();
    assert_eq!(world.device.statistics().unwrap().values.free_memory, Some(6));
}

#[test]
fn a_state_that_was_written_and_read_is_the_same() {
    let mut world = World::new();
    world.device.set_target(100).unwrap();
    for event in [
        Event::SendStatistics(5),
        Event::StartHinting,
        Event::Acknowledge,
        Event::Hint(3000, 3),
    ] {
        world.happen(event);
    }
    for _ in 0..4 {
        world.happen(Event::Step);
        world.stay();
    }
    let state = world.device.save();
    assert!(!state.ballooned.is_empty() && matches!(state.hinting.phase, HintingPhase::Running(_)));
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<BalloonState>(&text).unwrap(), state);
    for empty in [
        r#"{"first":5,"count":0}"#,
        r#"{"first":18446744073709551615,"count":2}"#,
    ] {
        assert!(serde_json::from_str::<Run>(empty).is_err(), "{empty}");
    }
}

#[test]
fn a_target_of_all_frames_is_restored() {
    let mut world = World::new();
    world.device.set_target(u64::MAX).unwrap();
    let all = world.device.target();
    world.move_elsewhere();
    assert_eq!(world.device.target(), all);
}
