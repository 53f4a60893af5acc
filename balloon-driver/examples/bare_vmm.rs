//! A balloon in a bare vm-memory and virtio-queue program: what a VMM has to write around the device.
//!
//! The VMM's side is `Transport`: in a real one its three methods are the handlers of MMIO or PCI accesses and of the
//! queues' ioeventfds, and `Lines` writes to irqfds. The guest's side is the driver half of this crate, where a real
//! VMM has a real guest.
//!
//! `cargo run --example bare_vmm`

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use balloon_driver::driver::{Device, Driver, Guest, Line};
use balloon_driver::release::Anonymous;
use balloon_driver::{Balloon, DeviceError, FRAME_SIZE, Interrupt, Options, Progress};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap>;

/// 256 MiB of guest memory.
const MEMORY: usize = 256 << 20;

/// What a transport keeps besides the device: the generation of the configuration, and the way to interrupt.
struct Lines {
    generation: AtomicU32,
    guest: Arc<Line>,
}

impl Interrupt for Lines {
    fn used_buffers(&self, queue: u16) -> io::Result<()> {
        // virtio-mmio: set bit 0 of InterruptStatus, write the irqfd.
        self.guest.used_buffers(queue)
    }

    fn config_changed(&self) -> io::Result<()> {
        // virtio-mmio: count up ConfigGeneration, set bit 1 of InterruptStatus, write the irqfd.
        self.generation.fetch_add(1, Ordering::Release);
        self.guest.config_changed()
    }
}

/// The VMM's half of virtio-mmio or virtio-pci, as far as the device is concerned.
struct Transport {
    device: Mutex<Balloon<Memory, Anonymous>>,
    lines: Arc<Lines>,
    memory: Memory,
}

impl Transport {
    /// The driver set DRIVER_OK: its features and queues are final.
    fn driver_ok(&self, features: u64, queues: Vec<Queue>) -> Result<()> {
        let mut device = self.device.lock().expect("no holder panics");
        let count = queues.len() as u16;
        let progress = device.activate(features, self.memory.clone(), queues, self.lines.clone())?;
        drop(device);
        if progress == Progress::More {
            (0..count).try_for_each(|queue| self.queue_event(queue))?;
        }
        Ok(())
    }

    /// The ioeventfd of a queue was written.
    fn queue_event(&self, queue: u16) -> Result<(), DeviceError> {
        let mut device = self.device.lock().expect("no holder panics");
        match device.handle_queue_event(queue) {
            // A real event loop writes the eventfd again instead, so that others have their turn.
            Ok(Progress::More) => drop(device.handle_queue_event(queue)?),
            Ok(Progress::Done) => {}
            // virtio-mmio: set DEVICE_NEEDS_RESET in Status, and raise the configuration interrupt.
            Err(error @ DeviceError::Ring { .. }) => eprintln!("the guest must reset its balloon: {error}"),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The guest's accesses, as they would arrive from its vCPUs.
impl Device for &Transport {
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device
            .lock()
            .expect("no holder panics")
            .read_config(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device
            .lock()
            .expect("no holder panics")
            .write_config(offset, data);
    }

    fn notify(&mut self, queue: u16) -> Result<(), DeviceError> {
        self.queue_event(queue)
    }
}

fn main() -> Result<()> {
    // The VMM: memory, device, transport.
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?);
    let device = Balloon::new(Options::default(), Anonymous::new(memory.clone())?);
    let features = device.features();
    let guest_line = Arc::new(Line::default());
    let lines = Arc::new(Lines {
        generation: AtomicU32::new(0),
        guest: guest_line.clone(),
    });
    let transport = Transport {
        device: Mutex::new(device),
        lines,
        memory: memory.clone(),
    };

    // The guest: it has used all of its memory, then runs the driver half in its first frames.
    for frame in 0..MEMORY as u64 / FRAME_SIZE {
        memory.write_obj(frame, GuestAddress(frame * FRAME_SIZE))?;
    }
    let driver = Driver::new(memory.clone(), GuestAddress(0), features)?;
    transport.driver_ok(features, driver.queues()?)?;
    let first = (Driver::<Memory>::window_len(features) / FRAME_SIZE) as u32;
    let mut guest = Guest::new(
        memory,
        driver,
        guest_line,
        (first..(MEMORY as u64 / FRAME_SIZE) as u32).collect(),
    );

    println!("before:   {:>3} MiB resident", resident_mib()?);
    for target_mib in [192u64, 64, 0] {
        transport
            .device
            .lock()
            .expect("no holder panics")
            .set_target((target_mib << 20) / FRAME_SIZE)?;
        while guest.ballooned() != (target_mib << 20) / FRAME_SIZE {
            guest.step(&mut &transport)?;
            guest.kick(&mut &transport)?;
        }
        println!(
            "balloon of {target_mib:>3} MiB: {:>3} MiB resident",
            resident_mib()?
        );
    }
    println!(
        "{:#?}",
        transport.device.lock().expect("no holder panics").counters()
    );
    Ok(())
}

/// This process's resident memory.
fn resident_mib() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm
        .split(' ')
        .nth(1)
        .context("statm has a second field")?
        .parse()?;
    Ok((pages * FRAME_SIZE) >> 20)
}
