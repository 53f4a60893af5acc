//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2 "Virtio Over MMIO").

use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueT};

use super::plug::Plug;
use crate::lock::lock;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"LEVY");

/// Register offsets.
mod reg {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00C;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(super) const QUEUE_NUM: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_AVAIL_LOW: u64 = 0x090;
    pub(super) const QUEUE_AVAIL_HIGH: u64 = 0x094;
    pub(super) const QUEUE_USED_LOW: u64 = 0x0A0;
    pub(super) const QUEUE_USED_HIGH: u64 = 0x0A4;
    pub(super) const CONFIG_GENERATION: u64 = 0x0FC;
    pub(super) const CONFIG: u64 = 0x100;
}

/// Device status bits (virtio 1.2, 2.1).
mod status {
    pub(super) const DRIVER: u32 = 2;
    pub(super) const DRIVER_OK: u32 = 4;
    pub(super) const FEATURES_OK: u32 = 8;
    pub(super) const NEEDS_RESET: u32 = 64;
    pub(super) const FAILED: u32 = 128;
}

/// Offset of the register whose writes are kicks; the value written is the queue's number.
pub(crate) const QUEUE_NOTIFY: u64 = reg::QUEUE_NOTIFY;

/// The register file of one device.
pub struct Mmio {
    plug: Arc<Plug>,
    registers: Mutex<MmioRegisters>,
}

struct MmioRegisters {
    status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    selected: u32,
    queues: Vec<Queue>,
}

impl Mmio {
    /// MmioRegisters in their state after power-on.
    pub fn new(plug: Arc<Plug>) -> Self {
        let registers = MmioRegisters::power_on(&plug);
        Self {
            plug,
            registers: Mutex::new(registers),
        }
    }

    /// The device behind the registers.
    pub fn plug(&self) -> &Arc<Plug> {
        &self.plug
    }

    /// The guest reads `data.len()` bytes at `offset`.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(reg::CONFIG) {
            return self.plug.device().read_config(at as usize, data);
        }
        data.fill(0);
        // MmioRegisters are 32 bits wide; anything else is a driver's mistake and reads as zero.
        if data.len() == 4 && offset.is_multiple_of(4) {
            let value = self.with(|registers| registers.read(offset, &self.plug));
            data.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// The guest writes `data` at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(reg::CONFIG) {
            let started = self.with(|registers| registers.status & status::DRIVER != 0);
            if started {
                self.plug.device().write_config(at as usize, data);
            }
            return;
        }
        if let Ok(bytes) = <[u8; 4]>::try_from(data) {
            let value = u32::from_le_bytes(bytes);
            self.with(|registers| registers.write(offset, value, &self.plug));
        }
    }

    fn with<R>(&self, f: impl FnOnce(&mut MmioRegisters) -> R) -> R {
        f(&mut lock(&self.registers))
    }
}

impl MmioRegisters {
    fn power_on(plug: &Plug) -> Self {
        Self {
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            selected: 0,
            queues: plug.new_queues(),
        }
    }

    fn read(&self, offset: u64, plug: &Plug) -> u32 {
        let queue = self.queues.get(self.selected as usize);
        match offset {
            reg::MAGIC => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => plug.device().kind().id(),
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => page(plug.features(), self.device_features_page),
            reg::QUEUE_NUM_MAX => queue.map_or(0, |q| u32::from(q.max_size())),
            reg::QUEUE_READY => queue.map_or(0, |q| u32::from(q.ready())),
            reg::INTERRUPT_STATUS => plug.interrupt().reasons(),
            reg::STATUS if plug.interrupt().needs_reset() => self.status | status::NEEDS_RESET,
            reg::STATUS => self.status,
            reg::CONFIG_GENERATION => plug.interrupt().config_generation(),
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32, plug: &Plug) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_page = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_page = value,
            reg::DRIVER_FEATURES => self.accept_features(value),
            reg::QUEUE_SEL => self.selected = value,
            reg::QUEUE_NOTIFY => {
                if let Some(kick) = plug.kicks().get(value as usize) {
                    let _ = kick.write(1);
                }
            }
            reg::INTERRUPT_ACK => plug.interrupt().acknowledge(value),
            reg::STATUS => self.set_status(value, plug),
            _ => self.set_up_queue(offset, value),
        }
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        match self.driver_features_page {
            0 => self.driver_features = self.driver_features & !0xFFFF_FFFF | u64::from(value),
            1 => self.driver_features = self.driver_features & 0xFFFF_FFFF | u64::from(value) << 32,
            _ => {}
        }
    }

    /// Queues can be set up until the driver says that it is ready.
    fn set_up_queue(&mut self, offset: u64, value: u32) {
        if self.status & status::DRIVER_OK != 0 {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.selected as usize) else {
            return;
        };
        match offset {
            // A size that does not fit 16 bits must not be cut down to one that does.
            reg::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            reg::QUEUE_READY => queue.set_ready(value == 1),
            reg::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            reg::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            reg::QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            reg::QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            reg::QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            reg::QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32, plug: &Plug) {
        if value == 0 {
            plug.reset();
            *self = Self::power_on(plug);
            return;
        }
        let mut value = value & !status::NEEDS_RESET;
        // FEATURES_OK stays unset where the driver accepts what was not offered: that is how it learns.
        if value & status::FEATURES_OK != 0 && self.driver_features & !plug.features() != 0 {
            value &= !status::FEATURES_OK;
        }
        let became = value & !self.status;
        self.status |= value;
        let ready = status::DRIVER_OK | status::FEATURES_OK;
        if became & status::DRIVER_OK != 0
            && self.status & ready == ready
            && self.status & status::FAILED == 0
        {
            let queues = std::mem::replace(&mut self.queues, plug.new_queues());
            for (shown, used) in self.queues.iter_mut().zip(&queues) {
                shown.set_ready(used.ready());
            }
            plug.activate(self.driver_features, queues);
        }
    }
}

/// 32 of 64 feature bits.
fn page(features: u64, page: u32) -> u32 {
    match page {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
