//! The ACPI tables: hardware-reduced, so that there is nothing to emulate but three registers.
//!
//! FADT (sleep and reset registers), MADT (local APICs, one IOAPIC) and a DSDT that names the serial port, the panic
//! port, every virtio-mmio device and the sleep state that means "off". Without a COM1 device in the DSDT a
//! hardware-reduced guest has no interrupt for its console and user space stays mute.

use acpi_tables::aml::{self, Path, ResourceTemplate};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::GAS;
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use super::{BootError, write};
use crate::layout;
use crate::memory::GuestRam;

const OEM: [u8; 6] = *b"LEVY  ";
const TABLE: [u8; 8] = *b"LEVYVMM ";

/// `mov al, 1; mov dx, 0x604; out dx, al; hlt`: a reset that jumps to the firmware it thinks there is ends here and
/// asks for the real thing. Linux takes this path whenever ACPI is hardware-reduced.
pub(super) const RESET_STUB: [u8; 7] = {
    let [low, high] = layout::RESET.to_le_bytes();
    [0xB0, 0x01, 0xBA, low, high, 0xEE, 0xF4]
};

/// `IAPC_BOOT_ARCH` of the FADT (ACPI 6.5, 5.2.9.3): neither VGA (bit 2) nor a CMOS clock (bit 5). Without bit 5 Linux
/// polls a clock that is not there, 40,000 port accesses during boot. Bit 3 would take message-signalled interrupts
/// from the guest.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;

/// A virtio-mmio device as the guest finds it.
#[derive(Clone, Copy, Debug)]
pub struct MmioDevice {
    /// Guest-physical address of its registers.
    pub base: u64,
    /// Its interrupt line.
    pub gsi: u32,
}

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct Platform {
    /// Number of vCPUs, 1 to 254.
    pub cpus: u8,
    /// The virtio devices, in the order in which the guest numbers them.
    pub devices: Vec<MmioDevice>,
}

/// A byte sink for AML.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl AmlSink for Bytes {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut sink = Bytes::default();
    table.to_aml_bytes(&mut sink);
    sink.0
}

/// Writes all tables and returns the address of the root pointer.
pub(super) fn write_tables(ram: &GuestRam, platform: &Platform) -> Result<u64, BootError> {
    // The root pointer comes first so that its address is known; its content is known last.
    let mut at = (layout::ACPI_TABLES + Rsdp::len() as u64).next_multiple_of(64);
    let mut place = |bytes: Vec<u8>| -> Result<u64, BootError> {
        let address = at;
        at = (at + bytes.len() as u64).next_multiple_of(64);
        assert!(at <= layout::RESET_VECTOR, "the ACPI tables outgrew their place");
        write(ram, "ACPI tables", address, &bytes)?;
        Ok(address)
    };
    let dsdt = place(dsdt(&platform.devices))?;
    let fadt = place(fadt(dsdt))?;
    let madt = place(madt(platform.cpus))?;
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(bytes_of(&xsdt))?;
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    write(ram, "ACPI tables", layout::ACPI_TABLES, &rsdp)?;
    Ok(layout::ACPI_TABLES)
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let port = |number: u16| {
        GAS::new(
            acpi_tables::gas::AddressSpace::SystemIo,
            8,
            0,
            acpi_tables::gas::AccessSize::ByteAccess,
            u64::from(number),
        )
    };
    let mut builder = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    builder.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    builder.reset_reg = port(layout::RESET);
    builder.reset_value = 1;
    builder.sleep_control_reg = port(layout::SLEEP_CONTROL);
    builder.sleep_status_reg = port(layout::SLEEP_STATUS);
    bytes_of(&builder.finalize())
}

fn madt(cpus: u8) -> Vec<u8> {
    let mut madt = MADT::new(
        OEM,
        TABLE,
        1,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    bytes_of(&madt)
}

fn dsdt(devices: &[MmioDevice]) -> Vec<u8> {
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, 1);
    sdt.append_slice(&serial_device());
    sdt.append_slice(&panic_device());
    sdt.append_slice(&power_button());
    sdt.append_slice(&button_events());
    for (number, device) in devices.iter().enumerate() {
        sdt.append_slice(&virtio_device(number, device));
    }
    sdt.append_slice(&soft_off());
    sdt.as_slice().to_vec()
}

fn edge_interrupt(gsi: u32) -> aml::Interrupt {
    // consumer, edge triggered, active high, not shared
    aml::Interrupt::new(true, true, false, false, gsi)
}

fn serial_device() -> Vec<u8> {
    let ports = aml::IO::new(layout::COM1, layout::COM1, 0, 8);
    let interrupt = edge_interrupt(layout::COM1_GSI);
    bytes_of(&aml::Device::new(
        Path::new("_SB_.COM1"),
        vec![
            &aml::Name::new(Path::new("_HID"), &aml::EISAName::new("PNP0501")),
            &aml::Name::new(Path::new("_UID"), &aml::ZERO),
            &aml::Name::new(Path::new("_DDN"), &"COM1"),
            &aml::Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&interrupt, &ports]),
            ),
        ],
    ))
}

fn panic_device() -> Vec<u8> {
    let port = aml::IO::new(layout::PVPANIC, layout::PVPANIC, 0, 1);
    bytes_of(&aml::Device::new(
        Path::new("_SB_.PVPN"),
        vec![
            &aml::Name::new(Path::new("_HID"), &"QEMU0001"),
            &aml::Name::new(Path::new("_STA"), &0x0Fu8),
            &aml::Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&port])),
        ],
    ))
}

fn power_button() -> Vec<u8> {
    bytes_of(&aml::Device::new(
        Path::new("_SB_.PWRB"),
        vec![&aml::Name::new(Path::new("_HID"), &aml::EISAName::new("PNP0C0C"))],
    ))
}

/// The "generic event device", which hardware-reduced ACPI has instead of an SCI: its one interrupt is the button.
fn button_events() -> Vec<u8> {
    let interrupt = edge_interrupt(layout::POWER_BUTTON_GSI);
    bytes_of(&aml::Device::new(
        Path::new("_SB_.GED_"),
        vec![
            &aml::Name::new(Path::new("_HID"), &"ACPI0013"),
            &aml::Name::new(Path::new("_UID"), &aml::ZERO),
            &aml::Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt])),
            &aml::Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![&aml::Notify::new(&Path::new("\\_SB_.PWRB"), &0x80u8)],
            ),
        ],
    ))
}

fn virtio_device(number: usize, device: &MmioDevice) -> Vec<u8> {
    let registers = aml::Memory32Fixed::new(true, device.base as u32, layout::VIRTIO_MMIO_STEP as u32);
    let interrupt = edge_interrupt(device.gsi);
    bytes_of(&aml::Device::new(
        Path::new(&format!("_SB_.V{number:03}")),
        vec![
            &aml::Name::new(Path::new("_HID"), &"LNRO0005"),
            &aml::Name::new(Path::new("_UID"), &(number as u32)),
            &aml::Name::new(Path::new("_CCA"), &aml::ONE),
            &aml::Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&registers, &interrupt]),
            ),
        ],
    ))
}

/// `_S5`, the state "soft off": sleep type 5 in both registers.
fn soft_off() -> Vec<u8> {
    let package = aml::Package::new(vec![&5u8, &5u8, &0u8, &0u8]);
    bytes_of(&aml::Name::new(Path::new("_S5_"), &package))
}
