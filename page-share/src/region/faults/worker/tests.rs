//! A handler that a test steps through, next to a region that it could serve.

use super::*;
use crate::region::Region;
use crate::region::faults::{Handler, SwapThread};
use crate::region::kernel::{Arena, Watch, remap};
use crate::region::options::ThreadStarted;
use crate::region::run::PageRun;
use crate::region::table::State;
use crate::{AnonymousMemory, Options, Swap};
use rustix::event::{EventfdFlags, eventfd};
use std::sync::mpsc::{channel, sync_channel};

fn region() -> (AnonymousMemory, Region) {
    let memory = AnonymousMemory::new(1024).unwrap();
    (0..512).for_each(|at| memory.write_page(at, &[byte(at); PAGE_SIZE]));
    let options = Options {
        store_bytes: 8 << 20,
        swap: Some(Swap::create(&std::env::temp_dir(), 1024).unwrap()),
        ..Options::default()
    };
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    (memory, region)
}

/// What page `at` is full of.
fn byte(at: u32) -> u8 {
    (at % 251 + 1) as u8
}

fn run(first: u32, count: u32) -> PageRun {
    PageRun::new(Gfn::new(first), count)
}

fn sources(region: &Region) -> Sources {
    Sources {
        guest: region.guest.clone(),
        cold: region.cold.clone(),
        area: region.area.clone(),
    }
}

/// A handler without a thread that reads events: tests ask it what `fault` resolves to as often as they want.
fn worker(region: &Region, swap_ins: SyncSender<SwapIn>) -> Worker {
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    Worker::new(sources(region), Arc::new(bell), swap_ins)
}

/// Lets a mover go on when the test fails.
struct ReadEvent<'a>(&'a Guest);

impl Drop for ReadEvent<'_> {
    fn drop(&mut self) {
        let _ = self.0.event_sources()[0].read();
    }
}

/// A handler for the rest of a test's life.
fn restart(region: &mut Region) {
    let (sources, started) = (sources(region), ThreadStarted::default);
    let (guest, cold) = (sources.guest.clone(), sources.cold.clone());
    let (swap_thread, swap_ins) = SwapThread::start(guest, cold, started()).unwrap();
    region.swap_thread = swap_thread;
    region.handler = Handler::start(sources, swap_ins, started()).unwrap();
}

/// No wait takes this long on any machine.
const LONG: Duration = Duration::from_secs(300);

#[test]
fn a_fault_is_tried_once_for_each_look_while_the_event_of_a_moving_mapping_is_unread() {
    let (memory, mut region) = region();
    let guest = region.guest.clone();
    assert_eq!(region.compress(run(0, 16)), 16);
    assert!(region.start_sample(100) > 0);
    let sampled = (16..512).find(|&at| region.state(Gfn::new(at)) == State::Sampled);
    let present = (16..512)
        .find(|&at| region.state(Gfn::new(at)) == State::Private)
        .unwrap();
    let touched = [0, sampled.unwrap(), 600].map(Gfn::new);
    region.handler.stop();
    region.swap_thread.stop();
    guest.set_closing(false);
    let (swap_ins, _requests) = sync_channel(1);
    let mut worker = worker(&region, swap_ins);
    // Some memory of the guest's watch that moves; its mover waits until the event is read.
    let area = Arena::reserve(3).unwrap();
    guest
        .watch_area(area.span().sub(0, 1), Watch::MissingAndWrites)
        .unwrap();
    std::thread::scope(|scope| {
        let span = area.span();
        let mover = scope.spawn(move || remap(span.sub(0, 1), span.sub(2, 1)));
        let before = touched.map(|at| guest.table().state(at));
        let fault = |page| Fault {
            page,
            protected: false,
        };
        let _unblock = ReadEvent(&guest);
        // The mover has begun when even a page that is there cannot be looked at.
        let start = Instant::now();
        while worker.resolve(&guest, fault(Gfn::new(present))) == Outcome::Done {
            assert!(start.elapsed() < LONG, "no try was ever disturbed");
            std::thread::yield_now();
        }
        for _ in 0..1000 {
            for page in touched {
                assert_eq!(worker.resolve(&guest, fault(page)), Outcome::Later);
            }
        }
        assert_eq!(
            touched.map(|at| guest.table().state(at)),
            before,
            "as if nothing had happened"
        );
        assert!(!mover.is_finished(), "somebody else read the event");
        // The guest's threads wait; one look reads the event and gets all of them going.
        worker.faults.extend(touched.map(fault));
        let (tries, mut looks) = (guest.counters().faults_retried.get(), 0);
        while !worker.faults.is_empty() || !worker.later.is_empty() || !mover.is_finished() {
            assert!(start.elapsed() < LONG, "the mover still waits");
            worker.serve(&guest);
            looks += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        mover.join().unwrap().unwrap();
        let tries = guest.counters().faults_retried.get() - tries;
        assert!(
            tries <= 3 * looks,
            "{tries} tries of three faults at {looks} looks"
        );
    });
    for page in touched {
        assert!(guest.table().state(page).is_private(), "{page:?}");
    }
    restart(&mut region);
    (0..512).for_each(|at| assert!(memory.read_page(at) == [byte(at); PAGE_SIZE], "page {at}"));
    guest.event_sources()[0]
        .unregister(area.span().sub(2, 1))
        .unwrap();
}

#[test]
fn a_disturbed_fault_is_not_tried_while_the_mapping_still_moves_and_goes_before_the_next_move() {
    let (memory, mut region) = region();
    let guest = region.guest.clone();
    assert_eq!(region.compress(run(0, 1)), 1);
    region.handler.stop();
    region.swap_thread.stop();
    guest.set_closing(false);
    let (swap_ins, _requests) = sync_channel(1);
    let mut worker = worker(&region, swap_ins);
    worker.later.push(Fault {
        page: Gfn::new(0),
        protected: false,
    });
    guest.set_moving(true);
    for _ in 0..100 {
        worker.serve(&guest);
    }
    assert_eq!(guest.counters().faults_retried.get(), 0);
    assert_eq!(guest.table().state(Gfn::new(0)), State::Compressed);
    assert_eq!(guest.disturbed_faults(), 1);
    guest.set_moving(false);
    worker.serve(&guest);
    assert_eq!(guest.table().state(Gfn::new(0)), State::Private);
    assert_eq!(guest.disturbed_faults(), 0);
    restart(&mut region);
    assert!(memory.read_page(0) == [byte(0); PAGE_SIZE]);
}

#[test]
fn faults_are_served_while_the_swap_file_does_not_answer() {
    let (memory, region) = region();
    let guest = region.guest.clone();
    assert_eq!(region.compress(run(0, 64)), 64);
    assert_eq!(region.swap_out(run(64, 64)).unwrap(), 64);
    assert!(region.start_sample(100) > 0);
    let sampled: Vec<u32> = (128..512)
        .filter(|&at| region.state(Gfn::new(at)) == State::Sampled)
        .collect();
    // A thread that writes to a slow disk holds this lock for as long as the disk takes.
    let slow = region.cold.swap().unwrap();
    std::thread::scope(|scope| {
        let (sender, answers) = channel();
        for at in [64, 80, 96, 127] {
            let (memory, sender) = (memory.clone(), sender.clone());
            scope.spawn(move || sender.send((at, memory.read_page(at))).unwrap());
        }
        let start = Instant::now();
        while guest.table().census()[State::InTransit as usize] < 64 {
            assert!(
                start.elapsed() < Duration::from_secs(300),
                "the faults never came"
            );
            std::thread::yield_now();
        }
        let (others, done) = channel();
        scope.spawn(move || {
            let compressed = (0..64).map(|at| (at, byte(at)));
            let taken = sampled.iter().map(|&at| (at, byte(at)));
            let empty = (512..1024).map(|at| (at, 0));
            for (at, byte) in compressed.chain(taken).chain(empty) {
                assert!(memory.read_page(at) == [byte; PAGE_SIZE], "page {at}");
            }
            others.send(()).unwrap();
        });
        let served = done.recv_timeout(Duration::from_secs(300));
        let early = answers.try_recv();
        drop(slow);
        assert!(served.is_ok(), "faults waited for the swap file");
        assert!(early.is_err(), "a swapped page came back without the file");
        for _ in 0..4 {
            let (at, bytes) = answers.recv_timeout(Duration::from_secs(300)).unwrap();
            assert!(bytes == [byte(at); PAGE_SIZE], "page {at}");
        }
    });
    assert!(guest.counters().samples_touched.get() > 0);
}
