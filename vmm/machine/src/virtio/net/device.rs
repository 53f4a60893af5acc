//! The network device.

use std::os::fd::RawFd;
use std::str::FromStr;
use std::{fmt, io};

use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;

use crate::virtio::device::read_config_bytes;
use crate::virtio::{Chain, DeviceKind, Fault, Figures, Interest, Malformed, Rings, Turn, VirtioDevice};

const QUEUES: [u16; 2] = [256, 256];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const HOST: usize = 0;

/// `struct virtio_net_hdr_v1`: without offloads all zero but `num_buffers`.
const HEADER: usize = 12;
const NUM_BUFFERS: usize = 10;
/// The longest frame: 64 KiB covers every MTU a tap can have.
const FRAME: usize = 64 << 10;

/// Frames in a row that the host cannot hand over, after which it is not asked for any more.
const FAILURES: u32 = 64;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not an Ethernet address; write six hex bytes such as 52:54:00:12:34:56");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        if bytes[0] & 1 != 0 {
            return Err(format!(
                "{text} is a group address; the first byte of a card's address is even"
            ));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Where frames come from and go to, without blocking.
pub trait FramePort: Send {
    /// Takes the next frame; [`io::ErrorKind::WouldBlock`] when there is none.
    ///
    /// # Errors
    /// What the host says.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize>;

    /// Sends a frame.
    ///
    /// # Errors
    /// What the host says; the frame is lost then, as frames may be.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;

    /// Readable when a frame waits.
    fn fd(&self) -> RawFd;
}

/// Counters of a network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct NetStats {
    /// Frames the guest got.
    pub received: u64,
    /// Frames the guest sent.
    pub sent: u64,
    /// Frames that were lost: longer than the guest's buffer, or refused by the host.
    pub dropped: u64,
}

/// A network card for one guest.
pub struct Net {
    port: Box<dyn FramePort>,
    mac: MacAddress,
    frame: Vec<u8>,
    /// Bytes of the frame in `frame` that waits for a buffer of the guest, header included.
    waiting: Option<usize>,
    stats: Figures<NetStats>,
    /// Frames in a row that the host could not hand over.
    failures: u32,
}

impl Net {
    /// A card with the address `mac` on `port`.
    pub fn new(port: Box<dyn FramePort>, mac: MacAddress) -> Self {
        Self {
            port,
            mac,
            frame: Vec::new(),
            waiting: None,
            stats: Figures::default(),
            failures: 0,
        }
    }

    /// The counters so far.
    pub fn stats(&self) -> NetStats {
        self.stats.get()
    }

    /// The counters, to be read without the card's lock.
    pub fn figures(&self) -> Figures<NetStats> {
        self.stats.clone()
    }

    /// Moves frames to the guest until there are none or the guest has no buffer; at most a queue's worth a turn.
    fn receive(&mut self, rings: &mut Rings) -> Result<(), Fault> {
        for _ in 0..QUEUES[RECEIVE] {
            let Some(len) = self.waiting.or_else(|| self.fetch()) else {
                break;
            };
            self.waiting = Some(len);
            let frame = &self.frame[..len];
            let mut fitted = false;
            let served = rings.serve_one(RECEIVE, |chain| {
                fitted = chain.writable() >= frame.len();
                if fitted {
                    chain.write(frame)?;
                }
                Ok(())
            })?;
            if !served {
                break;
            }
            self.waiting = None;
            self.stats.change(|stats| match fitted {
                true => stats.received += 1,
                false => stats.dropped += 1,
            });
            if rings.is_spent() {
                break;
            }
        }
        rings.notify(RECEIVE)
    }

    /// Takes the next frame from the host and puts a header before it.
    fn fetch(&mut self) -> Option<usize> {
        if self.is_cut_off() {
            return None;
        }
        self.frame[..HEADER].fill(0);
        self.frame[NUM_BUFFERS] = 1;
        let received = self.port.receive(&mut self.frame[HEADER..]);
        match received {
            Ok(0) => None,
            Ok(len) => {
                self.failures = 0;
                Some(HEADER + len)
            }
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    /// Nothing came. A tap that was deleted fails for ever, and counts as ready for ever.
    fn failed(&mut self, error: &io::Error) {
        if matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
        ) {
            self.failures = 0;
            return;
        }
        self.failures += 1;
        if self.is_cut_off() {
            log::error!(
                "a network card of this guest has lost its tap and receives nothing any more; start the guest again once \
                 the tap is back: {error}"
            );
        }
    }

    fn is_cut_off(&self) -> bool {
        self.failures >= FAILURES
    }

    fn transmit(&mut self, chain: &mut Chain<'_>) -> Result<(), Malformed> {
        let _header: [u8; HEADER] = chain.read_array()?;
        let len = chain.readable();
        // The receive side may have a frame waiting in the buffer: transmit uses what lies behind it.
        let Some(room) = self
            .frame
            .get_mut(HEADER + FRAME..)
            .filter(|room| len > 0 && len <= room.len())
        else {
            self.stats.change(|stats| stats.dropped += 1);
            return Ok(());
        };
        chain.read(&mut room[..len])?;
        let sent = self.port.send(&room[..len]);
        self.stats.change(|stats| match sent {
            Ok(()) => stats.sent += 1,
            Err(_) => stats.dropped += 1,
        });
        Ok(())
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_config_bytes(&self.mac.0, offset, data);
    }

    fn activate(&mut self, _features: u64, _rings: &mut Rings) -> Result<(), Fault> {
        self.frame.resize(HEADER + 2 * FRAME, 0);
        Ok(())
    }

    fn reset(&mut self) {
        self.waiting = None;
    }

    fn interests(&self) -> Vec<Interest> {
        // With a frame in hand and no buffer for it, the guest's next kick goes on, not the tap.
        match self.waiting {
            Some(_) => Vec::new(),
            None if self.is_cut_off() => Vec::new(),
            None => vec![Interest {
                fd: self.port.fd(),
                events: libc::POLLIN,
                token: HOST,
            }],
        }
    }

    fn queue_ready(&mut self, index: usize, rings: &mut Rings) -> Result<Turn, Fault> {
        if index == RECEIVE {
            self.receive(rings)?;
            return Ok(Turn::Drained);
        }
        rings.serve(TRANSMIT, |chain| self.transmit(chain))
    }

    fn host_ready(&mut self, _token: usize, rings: &mut Rings) -> Result<(), Fault> {
        self.receive(rings)
    }
}
