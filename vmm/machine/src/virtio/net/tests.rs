//! The network card on a socket pair instead of a tap.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::*;
use crate::virtio::testing::{BUFFERS, Driver, NEXT, WRITE, desc, survive_hostile_rings};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const HEADER: usize = 12;

struct Wire(UnixDatagram);

impl FramePort for Wire {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.recv(into)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame).map(|_| ())
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn card() -> (Driver, UnixDatagram, Arc<Mutex<Net>>) {
    let (host, far) = UnixDatagram::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    far.set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    let mac = "52:54:00:01:02:03".parse().unwrap();
    let net = Arc::new(Mutex::new(Net::new(Box::new(Wire(host)), mac)));
    (Driver::start(Arc::clone(&net) as _), far, net)
}

fn transmit(driver: &mut Driver, frame: &[u8]) {
    driver.put(BUFFERS, &[0; HEADER]);
    driver.put(BUFFERS + 64, frame);
    let chain = [
        desc(BUFFERS, HEADER as u32, NEXT, 1),
        desc(BUFFERS + 64, frame.len() as u32, 0, 0),
    ];
    driver.describe(TRANSMIT, 0, &chain);
    driver.complete(TRANSMIT, 0);
}

#[test]
fn frames_pass_both_ways_with_their_header() {
    let (mut driver, far, net) = card();
    transmit(&mut driver, b"to the host");
    let mut frame = [0; 64];
    let len = far.recv(&mut frame).unwrap();
    assert_eq!(&frame[..len], b"to the host");

    far.send(b"to the guest").unwrap();
    driver.describe(RECEIVE, 3, &[desc(BUFFERS, 2048, WRITE, 0)]);
    assert_eq!(driver.complete(RECEIVE, 3), 24);
    let header = driver.get(BUFFERS, HEADER);
    assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(driver.get(BUFFERS + HEADER as u64, 12), b"to the guest");
    let stats = net.lock().unwrap().stats();
    assert_eq!((stats.sent, stats.received, stats.dropped), (1, 1, 0));
}

#[test]
fn frames_wait_for_buffers_in_order_and_too_long_ones_are_lost() {
    let (mut driver, far, net) = card();
    for text in ["one", "two", "much too long for its buffer", "four"] {
        far.send(text.as_bytes()).unwrap();
    }
    let mut got = Vec::new();
    for head in 0..4u16 {
        driver.describe(RECEIVE, head, &[desc(BUFFERS, 20, WRITE, 0)]);
        let len = driver.complete(RECEIVE, head) as usize;
        got.push(driver.get(BUFFERS, len.max(HEADER))[HEADER..].to_vec());
    }
    assert_eq!(got, [b"one".to_vec(), b"two".to_vec(), vec![], b"four".to_vec()]);
    assert_eq!(net.lock().unwrap().stats().dropped, 1);
}

#[test]
fn the_driver_sees_the_cards_address() {
    let (driver, ..) = card();
    let mut mac = [0; 6];
    driver.mmio.read(0x100, &mut mac);
    assert_eq!(mac, [0x52, 0x54, 0, 1, 2, 3]);
}

#[test]
fn hostile_transmit_rings_stop_the_card_until_its_reset_and_nothing_else() {
    let (mut driver, far, _) = card();
    survive_hostile_rings(&mut driver, TRANSMIT, |driver| {
        transmit(driver, b"still here");
        let mut frame = [0; 64];
        let len = far.recv(&mut frame).unwrap();
        assert_eq!(&frame[..len], b"still here");
    });
}

#[test]
fn hostile_receive_rings_do_the_same() {
    let (mut driver, far, _) = card();
    for (times, (name, attack)) in (1..).zip(crate::virtio::testing::HOSTILE) {
        driver.bring_up();
        // Without a frame the card does not look at the queue.
        far.send(b"bait").unwrap();
        attack(&mut driver, RECEIVE);
        driver.wait_for(name, Driver::needs_reset);
        driver.expect_needs_reset(times);
        driver.bring_up();
        far.send(b"good").unwrap();
        driver.describe(RECEIVE, 0, &[desc(BUFFERS, 2048, WRITE, 0)]);
        driver.complete(RECEIVE, 0);
    }
}

#[test]
fn a_transmission_without_a_frame_or_with_a_giant_one_is_dropped() {
    let (mut driver, far, net) = card();
    driver.describe(TRANSMIT, 0, &[desc(BUFFERS, HEADER as u32, 0, 0)]);
    driver.complete(TRANSMIT, 0);
    driver.describe(TRANSMIT, 0, &[desc(BUFFERS, 200 << 10, 0, 0)]);
    driver.complete(TRANSMIT, 0);
    assert_eq!(net.lock().unwrap().stats().dropped, 2);
    transmit(&mut driver, b"after");
    let mut frame = [0; 64];
    assert_eq!(far.recv(&mut frame).unwrap(), 5);
}

#[test]
fn taps_that_cannot_be_are_refused_by_name() {
    let message = Tap::take("levy-none0").unwrap_err().to_string();
    assert!(
        message.starts_with("tap levy-none0: no such interface") && message.contains("create=on"),
        "{message}"
    );
    for name in ["", "a/b", "averyverylongname", "two words", ".."] {
        assert!(matches!(Tap::take(name), Err(TapError::Name(_))), "{name}");
    }
    assert!(matches!(Tap::create("lo", None), Err(TapError::Exists(_))));
    assert!(
        matches!(Tap::take("lo"), Err(TapError::Host { .. })),
        "an interface that is no tap"
    );
}

/// A tap that was deleted: always ready, and never with a frame.
struct Deleted(io::PipeReader, Arc<AtomicU32>);

impl FramePort for Deleted {
    fn receive(&mut self, _into: &mut [u8]) -> io::Result<usize> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Err(io::Error::from_raw_os_error(libc::EBADFD))
    }

    fn send(&mut self, _frame: &[u8]) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EBADFD))
    }

    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[test]
fn a_card_whose_tap_was_deleted_does_not_ask_for_ever() {
    let (reader, writer) = io::pipe().unwrap();
    drop(writer);
    let asked = Arc::new(AtomicU32::new(0));
    let port = Deleted(reader, Arc::clone(&asked));
    let net = Net::new(Box::new(port), "52:54:00:01:02:03".parse().unwrap());
    let net = Arc::new(Mutex::new(net));
    let mut driver = Driver::start(Arc::clone(&net) as _);
    let asked = || asked.load(Ordering::SeqCst);
    driver.wait_for("the card to give up", |_| asked() >= 64);
    // The card serves its driver as before, and each kick lets it look at what it waits for.
    for lost in 1..=100 {
        transmit(&mut driver, b"lost");
        assert_eq!(net.lock().unwrap().stats().dropped, lost);
    }
    assert_eq!(asked(), 64);
}
