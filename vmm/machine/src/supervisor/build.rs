//! A machine in typed steps: KVM, memory, devices, boot, vCPUs.

use std::fs::{File, Metadata};
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Sender;
use std::time::Instant;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::agent_lines::AgentLines;
use super::duties::GuestDuties;
use super::footprint::Smaps;
use crate::boot::{self, BootError, Platform};
use crate::config::{GuestConfig, Hints, ManagedConfig, SerialConfig, SharingConfig};
use crate::confine;
use crate::event::Event;
use crate::memory::{GuestRam, RamError};
use crate::virtio::blk::OverlayDisk;
use crate::virtio::console::Console;
use crate::virtio::net::MacAddress;
use crate::vm::{
    self, Builder, ConsoleOut, DeviceError, Devices, HostError, SerialLog, VcpuError, Vcpus, Vm,
};
use levy_member::{ConnectError, Introduction, ManageError, ManagedMemory, ManagerClient};
use levy_protocol::link::{Hello, Sharing};
use levy_protocol::socket::{SocketError, SocketFile};

/// What this process needs of data besides its guest's memory and the compressed store: stacks, tables, buffers.
const OWN_DATA: u64 = 64 << 20;

/// Why a guest cannot be started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum SetupError {
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Kernel, initrd or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// vCPUs.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The serial console's file.
    #[error("cannot write the console to {path}; give another --serial file=", path = path.display())]
    Serial {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The serial console's file is one that the guest is made of.
    #[error(
        "the console would overwrite {path}, which is the guest's {what}; give another --serial file=",
        path = path.display()
    )]
    SerialTaken { path: PathBuf, what: &'static str },
    /// Its manager.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The management of its memory.
    #[error(transparent)]
    ManagedMemory(#[from] ManageError),
    /// There is no /proc.
    #[error("cannot read /proc/self/smaps; mount /proc")]
    Books(#[source] io::Error),
    /// The host is out of threads or descriptors.
    #[error("the host cannot start a thread for this guest")]
    Thread(#[source] io::Error),
}

/// A guest's machine. Fields are dropped in order: vCPUs end before devices, devices before KVM and memory.
pub struct Machine {
    /// Its vCPUs.
    pub vcpus: Vcpus,
    /// Its devices.
    pub devices: Devices,
    /// KVM and memory.
    pub vm: Vm,
    /// Set once the guest is up.
    pub up: Arc<AtomicBool>,
    /// Set while its vCPUs stand still.
    pub paused: Arc<AtomicBool>,
    /// What the process's memory is for, by the kernel's books.
    pub(super) smaps: Smaps,
    /// The agent's socket file, which goes with the machine.
    _agent: Option<SocketFile>,
}

impl Machine {
    /// Builds the machine of `config`, paused before its first instruction. What happens to it goes to `events`.
    ///
    /// # Errors
    /// When the host, a file or an option does not allow it; nothing is left behind then.
    pub fn build(config: &GuestConfig, events: &Sender<Event>) -> Result<Self, SetupError> {
        let kvm = vm::open_kvm()?;
        let most = vm::most_vcpus(&kvm);
        let cpus = check_cpus(config.cpus.count, most)?;
        check_memory(config.memory.bytes)?;
        check_data(config)?;
        let introduction = config
            .managed
            .as_ref()
            .map(|managed| introduce(config, managed))
            .transpose()?;
        let ram = Arc::new(GuestRam::new(config.memory.bytes)?);
        match config.memory.mergeable {
            // The kernel merges small pages.
            true => ram.merge_by_kernel()?,
            false => ram.prefer_huge_pages(),
        }
        let vm = Vm::new(kvm, ram)?;
        let mut builder = Builder::new(&vm, OverlayDisk::default_directory());
        for disk in &config.disks {
            builder.disk(disk)?;
        }
        for (card, net) in config.nets.iter().enumerate() {
            builder.net(net, mac_of(&config.name, card))?;
        }
        builder.rng()?;
        if let Some(balloon) = &config.balloon {
            builder.balloon(balloon)?;
        }
        let (agent, console) = agent_channel(config, events)?;
        let devices = builder.finish(console, console_out(config, events)?)?;
        let platform = Platform {
            cpus,
            devices: devices.slots.clone(),
        };
        let entry = boot::load(vm.ram(), &config.boot, &platform)?;
        let [up, paused] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        if let (Some(introduction), Some(managed)) = (introduction, &config.managed) {
            let duties = GuestDuties {
                balloon: devices.handles.balloon.clone(),
                up: Arc::clone(&up),
                paused: Arc::clone(&paused),
                began: Instant::now(),
                events: events.clone(),
            };
            if managed.hints == Hints::On {
                devices.handles.tell_of_common_reads(vm.ram());
            }
            // The kernel is in place by now: it is the first that can be shared.
            match config.memory.mergeable {
                // A region that moves pages about would disturb the kernel; the manager counts what is held all the
                // same.
                true => log::info!("not managed: the kernel merges this guest's pages"),
                false => manage(vm.ram(), managed, introduction, duties)?,
            }
        }
        let vcpus = Vcpus::start(&vm, cpus, &entry, &devices.bus, events)?;
        Ok(Self {
            vcpus,
            devices,
            vm,
            up,
            paused,
            smaps: Smaps::open().map_err(SetupError::Books)?,
            _agent: agent,
        })
    }
}

/// Asks the manager for admission, before anything costs memory.
fn introduce(config: &GuestConfig, managed: &ManagedConfig) -> Result<Introduction, ConnectError> {
    let sharing = match &managed.sharing {
        SharingConfig::Off => Sharing::Off,
        SharingConfig::Domain(domain) => Sharing::Domain(domain.clone()),
        // Guests of one launch have one launcher.
        SharingConfig::Launch => Sharing::Domain(format!("launch-{}", std::os::unix::process::parent_id())),
    };
    let hello = Hello {
        min: match config.memory.mergeable {
            // Nothing holds it to less than its size.
            true => config.memory.bytes,
            false => config.memory.min,
        },
        shares: config.memory.shares,
        sharing,
        group: managed.group.clone(),
        fleet: managed.fleet.clone(),
        control: config.control.as_ref().map(|path| path.display().to_string()),
        ..Hello::new(&config.name, config.memory.bytes)
    };
    match &managed.swap {
        Some(swap) => Introduction::make_swapping(&managed.manager, hello, swap),
        None => Introduction::make(&managed.manager, hello),
    }
}

/// Puts the guest's memory under management. Where that is impossible the guest does not start: under a budget nothing
/// would hold it to its limit.
fn manage(
    ram: &Arc<GuestRam>,
    managed: &ManagedConfig,
    introduction: Introduction,
    duties: GuestDuties,
) -> Result<(), SetupError> {
    let memory = ManagedMemory::start_with(ram, managed.swap.clone(), confine::member_threads())?;
    // It ends with the process.
    ManagerClient::start(introduction, memory, Box::new(duties))?;
    Ok(())
}

fn check_cpus(asked: u64, most: usize) -> Result<u8, HostError> {
    match u8::try_from(asked) {
        Ok(count @ 1..) if usize::from(count) <= most => Ok(count),
        _ => Err(HostError::Vcpus { asked, most }),
    }
}

/// A guest larger than the host could never have all of its memory, whatever is shared or compressed.
fn check_memory(asked: u64) -> Result<(), HostError> {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?;
        kib.parse::<u64>().ok().map(|kib| kib << 10)
    });
    match total {
        Some(have) if asked > have => Err(HostError::MemoryAboveHost {
            asked_mib: asked >> 20,
            have_mib: have >> 20,
        }),
        _ => Ok(()),
    }
}

/// The kernel maps guest memory beyond RLIMIT_DATA in the place of address space that was reserved, and then refuses the
/// process everything else: even a thread's stack.
fn check_data(config: &GuestConfig) -> Result<(), HostError> {
    let (limit, _) = getrlimit(Resource::RLIMIT_DATA).unwrap_or((RLIM_INFINITY, RLIM_INFINITY));
    let asked = config.memory.bytes;
    let store = config
        .managed
        .as_ref()
        .map_or(0, |_| levy_member::store_bytes(asked));
    match asked.saturating_add(store).saturating_add(OWN_DATA) {
        needed if needed > limit => Err(HostError::MemoryAboveLimit {
            asked_mib: asked >> 20,
            needed_mib: needed >> 20,
            have_mib: limit >> 20,
        }),
        _ => Ok(()),
    }
}

/// A stable, locally administered address from the guest's name.
fn mac_of(name: &str, card: usize) -> MacAddress {
    // FNV-1a: only has to differ between guests, not to be hard to guess.
    let hash = name
        .bytes()
        .chain([card as u8])
        .fold(0xCBF2_9CE4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
        });
    let [a, b, c, ..] = hash.to_be_bytes();
    MacAddress([0x52, 0x54, 0x00, a, b, c])
}

fn agent_channel(
    config: &GuestConfig,
    events: &Sender<Event>,
) -> Result<(Option<SocketFile>, Console), SetupError> {
    let bound: Option<(SocketFile, UnixListener)> =
        config.agent.as_deref().map(SocketFile::bind).transpose()?;
    let (mut file, listener) = bound.unzip();
    if let Some(file) = &mut file
        && !confine::removes_sockets()
    {
        file.leave_to_starter();
    }
    let mut lines = AgentLines::new(events.clone());
    let sink = Box::new(move |line: &[u8]| lines.heard(line));
    let console = Console::new(listener, sink).map_err(SetupError::Thread)?;
    Ok((file, console))
}

fn console_out(config: &GuestConfig, events: &Sender<Event>) -> Result<ConsoleOut, SetupError> {
    let to: Box<dyn Write + Send> = match &config.serial {
        SerialConfig::Stdio => Box::new(io::stdout()),
        SerialConfig::Null => Box::new(io::sink()),
        SerialConfig::File(path) => console_file(path, config)?,
    };
    let panics = events.clone();
    let panic = Box::new(move |line: &str| {
        let _ = panics.send(Event::Panicked(line.to_owned()));
    });
    ConsoleOut::new(to, panic).map_err(SetupError::Thread)
}

/// Opens the console's file and empties it, unless the guest boots from it or has it as a disk, by whatever name. A
/// regular file keeps the newest of the console; everything goes to one that keeps nothing, such as a terminal.
fn console_file(path: &Path, config: &GuestConfig) -> Result<Box<dyn Write + Send>, SetupError> {
    let failed = |source| SetupError::Serial {
        path: path.to_owned(),
        source,
    };
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let file = file.map_err(failed)?;
    let id = |metadata: &Metadata| (metadata.dev(), metadata.ino());
    let found = file.metadata().map_err(failed)?;
    let used = [(&config.boot.kernel, "kernel")]
        .into_iter()
        .chain(config.boot.initrd.iter().map(|path| (path, "initrd")))
        .chain(config.disks.iter().map(|disk| (&disk.path, "disk")));
    for (other, what) in used {
        if std::fs::metadata(other).is_ok_and(|metadata| id(&metadata) == id(&found)) {
            let path = path.to_owned();
            return Err(SetupError::SerialTaken { path, what });
        }
    }
    Ok(match found.is_file() {
        true => Box::new(SerialLog::new(file).map_err(failed)?),
        false => Box::new(file),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpu_counts_outside_the_hosts_range_are_refused_by_value() {
        assert_eq!(check_cpus(2, 254).unwrap(), 2);
        for asked in [0, 255, 300, u64::MAX] {
            let message = check_cpus(asked, 254).unwrap_err().to_string();
            assert_eq!(
                message,
                format!("cpus={asked}: a guest on this host has 1 to 254 vCPUs")
            );
        }
    }

    #[test]
    fn memory_above_the_host_is_refused_with_both_sizes() {
        let message = check_memory(1 << 45).unwrap_err().to_string();
        assert!(
            message.starts_with("memory size=33554432M is above this host's "),
            "{message}"
        );
        assert!(check_memory(16 << 20).is_ok());
    }

    #[test]
    fn cards_of_different_guests_have_different_unicast_addresses() {
        let (a, b) = (mac_of("web-1", 0), mac_of("web-2", 0));
        assert_ne!(a, b);
        assert_ne!(a, mac_of("web-1", 1));
        assert_eq!(a.0[0] & 1, 0);
    }
}
