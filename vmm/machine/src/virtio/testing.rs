//! The driver's half of a virtqueue, for tests: writes rings and descriptors into guest memory, honest or hostile,
//! and drives a device through its real registers and thread.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::{Mmio, Plug, VirtioDevice};
use crate::memory::GuestRam;

/// Guest memory in tests.
pub(super) const MEMORY: u64 = 4 << 20;
/// Entries of each queue.
pub(super) const SIZE: u16 = 8;
/// Where buffers may lie.
pub(super) const BUFFERS: u64 = 1 << 20;

/// Descriptor flags.
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

const STATUS: u64 = 0x70;
const NEEDS_RESET: u32 = 64;

/// How long a device may take to do something in a test.
const PATIENCE: Duration = Duration::from_secs(20);

/// A descriptor as a driver writes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

/// A descriptor.
pub(super) fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc {
        addr,
        len,
        flags,
        next,
    }
}

/// A device under a driver.
pub(super) struct Driver {
    pub(super) mmio: Mmio,
    pub(super) ram: Arc<GuestRam>,
    queues: u16,
    avail: Vec<u16>,
}

impl Driver {
    /// Plugs `device` in and starts it as a correct driver does, with the event index and all else it offers.
    pub(super) fn start(device: Arc<Mutex<dyn VirtioDevice>>) -> Self {
        Self::start_with(device, Arc::new(GuestRam::new(MEMORY).unwrap()))
    }

    /// The same over memory that the device knows already.
    pub(super) fn start_with(device: Arc<Mutex<dyn VirtioDevice>>, ram: Arc<GuestRam>) -> Self {
        let plug = Plug::new("test", device, Arc::clone(&ram)).unwrap();
        let queues = plug.kicks().len() as u16;
        let mut driver = Self {
            mmio: Mmio::new(Arc::new(plug)),
            ram,
            queues,
            avail: vec![0; usize::from(queues)],
        };
        driver.bring_up();
        driver
    }

    /// The whole handshake, from reset to DRIVER_OK.
    pub(super) fn bring_up(&mut self) {
        self.write(STATUS, 0);
        self.avail.fill(0);
        let zeros = vec![0; 0x4000 * usize::from(self.queues)];
        self.ram.view().write_slice(&zeros, GuestAddress(0)).unwrap();
        self.write(STATUS, 1);
        self.write(STATUS, 3);
        for page in 0..2 {
            self.write(0x14, page);
            let offered = self.read(0x10);
            self.write(0x24, page);
            self.write(0x20, offered);
        }
        self.write(STATUS, 11);
        assert_eq!(self.read(STATUS) & 8, 8, "features were accepted");
        for queue in 0..self.queues {
            self.set_up(queue, table(queue));
        }
        self.write(STATUS, 15);
    }

    fn set_up(&self, queue: u16, table: u64) {
        self.write(0x30, queue.into());
        self.write(0x38, SIZE.into());
        for (register, address) in [(0x80, table), (0x90, avail(queue)), (0xA0, used(queue))] {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    pub(super) fn write(&self, register: u64, value: u32) {
        self.mmio.write(register, &value.to_le_bytes());
    }

    pub(super) fn read(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.mmio.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(super) fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.view().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(super) fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.view().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Writes `descs` into queue `queue`'s table from entry `first` on.
    pub(super) fn describe(&self, queue: u16, first: u16, descs: &[Desc]) {
        self.describe_at(table(queue) + u64::from(first) * 16, descs);
    }

    /// Writes `descs` to `at`.
    pub(super) fn describe_at(&self, at: u64, descs: &[Desc]) {
        for (n, d) in (0u64..).zip(descs) {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&d.addr.to_le_bytes());
            bytes[8..12].copy_from_slice(&d.len.to_le_bytes());
            bytes[12..14].copy_from_slice(&d.flags.to_le_bytes());
            bytes[14..].copy_from_slice(&d.next.to_le_bytes());
            self.put(at + n * 16, &bytes);
        }
    }

    /// Makes `head` available on `queue` without a kick.
    pub(super) fn offer(&mut self, queue: u16, head: u16) {
        let index = &mut self.avail[usize::from(queue)];
        let slot = avail(queue) + 4 + 2 * u64::from(*index % SIZE);
        *index = index.wrapping_add(1);
        let index = *index;
        self.put(slot, &head.to_le_bytes());
        self.put(avail(queue) + 2, &index.to_le_bytes());
    }

    /// Pretends that the available index of `queue` is `index`.
    pub(super) fn jump(&self, queue: u16, index: u16) {
        self.put(avail(queue) + 2, &index.to_le_bytes());
    }

    pub(super) fn kick(&self, queue: u16) {
        self.write(0x50, queue.into());
    }

    /// The heads that came back on `queue`, with the bytes written.
    pub(super) fn used(&self, queue: u16) -> Vec<(u32, u32)> {
        let bytes = self.get(used(queue) + 2, 2);
        let count = u16::from_le_bytes([bytes[0], bytes[1]]);
        let entry = |n: u16| {
            let bytes = self.get(used(queue) + 4 + 8 * u64::from(n % SIZE), 8);
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            (word(0), word(4))
        };
        (0..count).map(entry).collect()
    }

    /// Waits until `done` says so.
    pub(super) fn wait_for(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            assert!(begin.elapsed() < PATIENCE, "waiting for {what}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Offers and kicks `head` on `queue` and waits until it is back; bytes written.
    pub(super) fn complete(&mut self, queue: u16, head: u16) -> u32 {
        let before = self.used(queue).len();
        self.offer(queue, head);
        self.kick(queue);
        self.wait_for("a chain to come back", |d| d.used(queue).len() > before);
        let (id, len) = self.used(queue)[before];
        assert_eq!(id, u32::from(head));
        len
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.read(STATUS) & NEEDS_RESET != 0
    }

    /// Waits for NEEDS_RESET, sees that the guest was told, and that the counter shows it.
    pub(super) fn expect_needs_reset(&self, times: u64) {
        self.wait_for("NEEDS_RESET", Self::needs_reset);
        assert_eq!(self.read(0x60) & 2, 2, "the guest got a configuration interrupt");
        assert_eq!(self.mmio.plug().stats().needs_reset, times);
        let interrupt = self.mmio.plug().interrupt().line();
        assert!(interrupt.as_raw_fd() >= 0 && interrupt.read().is_ok());
    }
}

fn table(queue: u16) -> u64 {
    u64::from(queue) * 0x4000
}

fn avail(queue: u16) -> u64 {
    table(queue) + 0x1000
}

fn used(queue: u16) -> u64 {
    table(queue) + 0x2000
}

/// Every way in which a queue itself can be wrong, whatever device it belongs to. Each case gets the queue's number,
/// makes the queue wrong and kicks it.
pub(super) type Hostile = (&'static str, fn(&mut Driver, u16));

pub(super) const HOSTILE: &[Hostile] = &[
    ("available index jumps ahead", |d, q| {
        d.jump(q, SIZE + 1);
        d.kick(q);
    }),
    ("available index runs backwards", |d, q| {
        d.jump(q, u16::MAX);
        d.kick(q);
    }),
    ("head beyond the table", |d, q| offer_one(d, q, SIZE)),
    ("head far beyond the table", |d, q| offer_one(d, q, u16::MAX)),
    ("next beyond the table", |d, q| {
        d.describe(q, 0, &[desc(BUFFERS, 16, NEXT, SIZE)]);
        offer_one(d, q, 0);
    }),
    ("a descriptor that follows itself", |d, q| {
        d.describe(q, 0, &[desc(BUFFERS, 16, NEXT, 0)]);
        offer_one(d, q, 0);
    }),
    ("a loop of two", |d, q| {
        d.describe(q, 0, &[desc(BUFFERS, 16, NEXT, 1), desc(BUFFERS, 16, NEXT, 0)]);
        offer_one(d, q, 0);
    }),
    ("a buffer behind the end of memory", |d, q| {
        d.describe(q, 0, &[desc(MEMORY, 16, 0, 0)]);
        offer_one(d, q, 0);
    }),
    ("a buffer across the end of memory", |d, q| {
        d.describe(q, 0, &[desc(MEMORY - 8, 16, WRITE, 0)]);
        offer_one(d, q, 0);
    }),
    ("a buffer across the end of the address space", |d, q| {
        d.describe(q, 0, &[desc(u64::MAX - 8, 16, WRITE, 0)]);
        offer_one(d, q, 0);
    }),
    ("a buffer of 4 GiB", |d, q| {
        d.describe(q, 0, &[desc(0, u32::MAX, 0, 0)]);
        offer_one(d, q, 0);
    }),
    ("a readable buffer behind a writable one", |d, q| {
        d.describe(
            q,
            0,
            &[desc(BUFFERS, 16, WRITE | NEXT, 1), desc(BUFFERS, 16, 0, 0)],
        );
        offer_one(d, q, 0);
    }),
    ("an indirect table of half a descriptor", |d, q| {
        d.describe(q, 0, &[desc(BUFFERS, 8, INDIRECT, 0)]);
        offer_one(d, q, 0);
    }),
    ("an empty indirect table", |d, q| {
        d.describe(q, 0, &[desc(BUFFERS, 0, INDIRECT, 0)]);
        offer_one(d, q, 0);
    }),
    ("an indirect table outside memory", |d, q| {
        d.describe(q, 0, &[desc(MEMORY, 32, INDIRECT, 0)]);
        offer_one(d, q, 0);
    }),
    ("an indirect table that goes on behind", |d, q| {
        d.describe(
            q,
            0,
            &[desc(BUFFERS, 16, INDIRECT | NEXT, 1), desc(BUFFERS, 16, 0, 0)],
        );
        offer_one(d, q, 0);
    }),
    ("an indirect table in an indirect table", |d, q| {
        d.describe_at(BUFFERS, &[desc(BUFFERS, 16, INDIRECT, 0)]);
        d.describe(q, 0, &[desc(BUFFERS, 16, INDIRECT, 0)]);
        offer_one(d, q, 0);
    }),
    ("a loop inside an indirect table", |d, q| {
        d.describe_at(
            BUFFERS,
            &[desc(BUFFERS + 64, 16, NEXT, 1), desc(BUFFERS + 64, 16, NEXT, 0)],
        );
        d.describe(q, 0, &[desc(BUFFERS, 32, INDIRECT, 0)]);
        offer_one(d, q, 0);
    }),
];

fn offer_one(driver: &mut Driver, queue: u16, head: u16) {
    driver.offer(queue, head);
    driver.kick(queue);
}

/// Puts a device through [`HOSTILE`] on queue `queue`: every case ends in NEEDS_RESET, every head that exists comes
/// back, and after a reset the device works again, which `works` shows.
pub(super) fn survive_hostile_rings(driver: &mut Driver, queue: u16, works: impl Fn(&mut Driver)) {
    works(driver);
    for (times, (name, attack)) in (1..).zip(HOSTILE) {
        driver.bring_up();
        attack(driver, queue);
        driver.wait_for(name, Driver::needs_reset);
        driver.expect_needs_reset(times);
        let heads: Vec<_> = driver.used(queue).into_iter().map(|(head, _)| head).collect();
        let exists = !name.contains("index") && !name.starts_with("head");
        assert_eq!(heads, if exists { vec![0] } else { vec![] }, "{name}");
        // A broken device stays still until it is reset, whatever is kicked.
        driver.kick(queue);
        driver.bring_up();
        assert!(!driver.needs_reset(), "{name}");
        works(driver);
    }
}
