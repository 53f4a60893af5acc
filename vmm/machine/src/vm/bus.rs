//! What answers a vCPU's accesses to ports and to addresses that are not RAM.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::power::{self, PowerRequest};
use super::serial::SerialPort;
use crate::layout;
use crate::lock::lock;
use crate::virtio::Mmio;

/// Ports of the 16550.
const COM1_PORTS: std::ops::Range<u16> = layout::COM1..layout::COM1 + 8;

/// Every register of the machine that is not in KVM.
pub struct Bus {
    serial: SerialPort,
    virtio: Vec<Arc<Mmio>>,
    unknown: AtomicU64,
}

impl Bus {
    pub(super) fn new(serial: SerialPort, virtio: Vec<Arc<Mmio>>) -> Self {
        Self {
            serial,
            virtio,
            unknown: AtomicU64::new(0),
        }
    }

    /// Accesses that nothing answered; reads of those give all ones.
    pub fn unknown_accesses(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    /// A vCPU reads a port.
    pub(super) fn port_in(&self, port: u16, data: &mut [u8]) {
        for (byte, port) in data.iter_mut().zip(ports_from(port)) {
            *byte = if COM1_PORTS.contains(&port) {
                let mut serial = lock(&self.serial);
                serial.read((port - layout::COM1) as u8)
            } else {
                power::read(port).unwrap_or_else(|| self.nobody())
            };
        }
    }

    /// A vCPU writes a port.
    pub(super) fn port_out(&self, port: u16, data: &[u8]) -> Option<PowerRequest> {
        let mut asked = None;
        for (&byte, port) in data.iter().zip(ports_from(port)) {
            if COM1_PORTS.contains(&port) {
                let mut serial = lock(&self.serial);
                // The console's buffer takes everything; only the interrupt could fail, and it is pending then.
                let _ = serial.write((port - layout::COM1) as u8, byte);
            } else {
                asked = asked.or(power::request(port, byte));
            }
        }
        asked
    }

    /// A vCPU reads an address that is not RAM.
    pub(super) fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.virtio_at(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(self.nobody()),
        }
    }

    /// A vCPU writes an address that is not RAM.
    pub(super) fn mmio_write(&self, address: u64, data: &[u8]) {
        match self.virtio_at(address) {
            Some((device, offset)) => device.write(offset, data),
            None => {
                self.nobody();
            }
        }
    }

    fn virtio_at(&self, address: u64) -> Option<(&Mmio, u64)> {
        let offset = address.checked_sub(layout::VIRTIO_MMIO)?;
        let device = self.virtio.get((offset / layout::VIRTIO_MMIO_STEP) as usize)?;
        Some((device, offset % layout::VIRTIO_MMIO_STEP))
    }

    fn nobody(&self) -> u8 {
        self.unknown.fetch_add(1, Ordering::Relaxed);
        0xFF
    }
}

/// The ports of an access, the first of which is `port`. Behind the last port comes the first one.
fn ports_from(port: u16) -> impl Iterator<Item = u16> {
    (port..=u16::MAX).chain(0..)
}
