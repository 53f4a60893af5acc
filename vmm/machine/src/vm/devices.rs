//! Everything on the bus, made from what the user asked for.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kvm_ioctls::IoEventAddress;
use vmm_sys_util::eventfd::EventFd;

use super::bus::Bus;
use super::kvm::{HostError, Vm, refused};
use super::serial::{ConsoleOut, SerialInput, serial_port};
use crate::boot::MmioDevice;
use crate::config::{BalloonConfig, DiskConfig, DiskMode, NetConfig};
use crate::layout;
use crate::lock::lock;
use crate::memory::GuestRam;
use crate::virtio::balloon::{Balloon, BalloonHandle};
use crate::virtio::blk::{Access, Block, BlockStats, Disk, DiskError, OverlayDisk, RawDisk};
use crate::virtio::console::{Console, ConsoleHandle};
use crate::virtio::net::{MacAddress, Net, NetStats, Tap, TapError};
use crate::virtio::rng::Rng;
use crate::virtio::{Figures, Mmio, Plug, QUEUE_NOTIFY, VirtioDevice};

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum DeviceError {
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A network card.
    #[error(transparent)]
    Net(#[from] TapError),
    /// KVM.
    #[error(transparent)]
    Host(#[from] HostError),
    /// More devices than interrupt lines.
    #[error("{0} devices are more than the {most} a guest can have; leave out disks or network cards", most = layout::VIRTIO_GSIS.len())]
    TooMany(usize),
    /// The host is out of descriptors or threads.
    #[error("the host cannot provide {what}")]
    Resources {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// The devices of a guest by name, for those who ask for figures or send input: none of that waits for the lock of a
/// device, which the guest may keep busy.
pub struct Handles {
    disks: Vec<Arc<Mutex<Block>>>,
    /// Disks, in order.
    pub disk_figures: Vec<Figures<BlockStats>>,
    /// Network cards, in order.
    pub nets: Vec<Figures<NetStats>>,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonHandle>,
    /// The agent's channel.
    pub console: ConsoleHandle,
    /// Every virtio device in its slot.
    pub plugs: Vec<Arc<Plug>>,
    /// A signal presses the power button.
    pub power_button: EventFd,
    /// Keyboard input for the serial console.
    pub serial: SerialInput,
}

/// What is on the bus.
pub struct Devices {
    /// The bus.
    pub bus: Arc<Bus>,
    /// The devices.
    pub handles: Handles,
    /// Where the guest finds the virtio devices.
    pub slots: Vec<MmioDevice>,
}

/// Plugs devices in one after the other.
pub(crate) struct Builder<'a> {
    vm: &'a Vm,
    layers: PathBuf,
    disks: Vec<Arc<Mutex<Block>>>,
    nets: Vec<Figures<NetStats>>,
    balloon: Option<BalloonHandle>,
    registers: Vec<Arc<Mmio>>,
    slots: Vec<MmioDevice>,
}

impl<'a> Builder<'a> {
    /// Nothing plugged in yet; overlays go into the directory `layers`.
    pub(crate) fn new(vm: &'a Vm, layers: PathBuf) -> Self {
        Self {
            vm,
            layers,
            disks: Vec::new(),
            nets: Vec::new(),
            balloon: None,
            registers: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// Plugs in a disk; the guest's next `/dev/vdX`.
    pub(crate) fn disk(&mut self, config: &DiskConfig) -> Result<(), DeviceError> {
        let disk: Box<dyn Disk> = match config.mode {
            DiskMode::Write => Box::new(RawDisk::open(&config.path, Access::Exclusive)?),
            DiskMode::Read => Box::new(RawDisk::open(&config.path, Access::Shared)?),
            DiskMode::Overlay => Box::new(match &config.layer {
                Some(layer) => OverlayDisk::over_layer(&config.path, layer)?,
                None => OverlayDisk::open(&config.path, &self.layers)?,
            }),
        };
        let name = format!("disk{}", self.disks.len());
        let mut block = Block::new(disk, &name).with_latency(config.latency);
        if config.mode == DiskMode::Read {
            block = block.read_only();
        }
        let block = Arc::new(Mutex::new(block));
        self.disks.push(Arc::clone(&block));
        self.plug(&name, block)
    }

    /// Plugs in a network card; the guest's next `ethN`. `default_mac` is for those who do not care.
    pub(crate) fn net(&mut self, config: &NetConfig, default_mac: MacAddress) -> Result<(), DeviceError> {
        let tap = match config.create {
            true => Tap::create(&config.tap, config.host)?,
            false => Tap::take(&config.tap)?,
        };
        let net = Net::new(Box::new(tap), config.mac.unwrap_or(default_mac));
        let name = format!("net{}", self.nets.len());
        self.nets.push(net.figures());
        self.plug(&name, Arc::new(Mutex::new(net)))
    }

    /// Plugs in an entropy source.
    pub(crate) fn rng(&mut self) -> Result<(), DeviceError> {
        let rng = Rng::new().map_err(resources("/dev/urandom"))?;
        self.plug("rng", Arc::new(Mutex::new(rng)))
    }

    /// Plugs in a balloon.
    pub(crate) fn balloon(&mut self, config: &BalloonConfig) -> Result<(), DeviceError> {
        let balloon = Balloon::new(config, self.vm.ram()).map_err(resources("a timer for the balloon"))?;
        let balloon = Arc::new(Mutex::new(balloon));
        self.balloon = Some(BalloonHandle::to(&balloon));
        self.plug("balloon", balloon)
    }

    /// Plugs in any device.
    pub(crate) fn plug(
        &mut self,
        name: &str,
        device: Arc<Mutex<dyn VirtioDevice>>,
    ) -> Result<(), DeviceError> {
        let number = self.slots.len();
        let Some(&gsi) = layout::VIRTIO_GSIS.get(number) else {
            return Err(DeviceError::TooMany(number + 1));
        };
        let base = layout::VIRTIO_MMIO + number as u64 * layout::VIRTIO_MMIO_STEP;
        let plug = Plug::new(name, device, Arc::clone(self.vm.ram())).map_err(resources("an eventfd"))?;
        self.vm
            .fd()
            .register_irqfd(plug.interrupt().line(), gsi)
            .map_err(refused("wire a device's interrupt"))?;
        for (queue, kick) in (0u32..).zip(plug.kicks()) {
            let address = IoEventAddress::Mmio(base + QUEUE_NOTIFY);
            self.vm
                .fd()
                .register_ioevent(kick, &address, queue)
                .map_err(refused("wire a device's kicks"))?;
        }
        self.registers.push(Arc::new(Mmio::new(Arc::new(plug))));
        self.slots.push(MmioDevice { base, gsi });
        Ok(())
    }

    /// Puts everything on a bus, with the agent's channel and the human console.
    pub(crate) fn finish(mut self, console: Console, out: ConsoleOut) -> Result<Devices, DeviceError> {
        let handle = console.handle();
        self.plug("console", Arc::new(Mutex::new(console)))?;
        let serial = serial_port(self.vm.fd(), out)?;
        let power_button = power_button(self.vm)?;
        let plugs = self.registers.iter().map(|r| Arc::clone(r.plug())).collect();
        Ok(Devices {
            handles: Handles {
                disk_figures: self.disks.iter().map(|disk| lock(disk).figures()).collect(),
                disks: self.disks,
                nets: self.nets,
                balloon: self.balloon,
                console: handle,
                plugs,
                power_button,
                serial: SerialInput(Arc::clone(&serial)),
            },
            bus: Arc::new(Bus::new(serial, self.registers)),
            slots: self.slots,
        })
    }
}

/// The power button is nothing but its interrupt line.
fn power_button(vm: &Vm) -> Result<EventFd, DeviceError> {
    let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(resources("an eventfd"))?;
    vm.fd()
        .register_irqfd(&line, layout::POWER_BUTTON_GSI)
        .map_err(refused("wire the power button's interrupt"))?;
    Ok(line)
}

impl Handles {
    /// Has all disks tell which pages they fill from images that other guests may read too.
    pub fn tell_of_common_reads(&self, ram: &Arc<GuestRam>) {
        for disk in &self.disks {
            lock(disk).tell_of_common_reads(Arc::clone(ram));
        }
    }

    /// The plugged device called `name`.
    pub fn plug(&self, name: &str) -> Option<&Arc<Plug>> {
        self.plugs.iter().find(|p| p.name() == name)
    }
}

fn resources(what: &'static str) -> impl FnOnce(io::Error) -> DeviceError {
    move |source| DeviceError::Resources { what, source }
}
