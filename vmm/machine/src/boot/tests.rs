//! Kernels, initrds and sizes that cannot boot, and the tables of those that can.

mod vmlinux;

use std::path::{Path, PathBuf};

use super::*;

/// The smallest file that passes for a bzImage: two setup sectors and a body of 4 KiB.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0u8; 3 * 512 + 4096];
    file[0x1F1] = 2;
    file[0x1F4..0x1F8].copy_from_slice(&(4096u32 / 16).to_le_bytes());
    file[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    file[0x201] = 0x6A;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020Fu16.to_le_bytes());
    file[0x22C..0x230].copy_from_slice(&0x7FFF_FFFFu32.to_le_bytes());
    file[0x236] = 1;
    file[0x238..0x23C].copy_from_slice(&2047u32.to_le_bytes());
    file[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    file[0x260..0x264].copy_from_slice(&(40u32 << 20).to_le_bytes());
    file[3 * 512..].fill(0x90);
    file
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn boot(kernel: &Path, initrd: Option<&Path>, memory_mib: u64) -> Result<(GuestRam, EntryState), BootError> {
    let ram = GuestRam::new(memory_mib << 20).unwrap();
    let files = BootFiles {
        kernel: kernel.to_owned(),
        initrd: initrd.map(Path::to_owned),
        cmdline: "console=ttyS0".into(),
    };
    let platform = Platform {
        cpus: 2,
        devices: vec![MmioDevice {
            base: layout::VIRTIO_MMIO,
            gsi: 16,
        }],
    };
    let entry = load(&ram, &files, &platform)?;
    Ok((ram, entry))
}

fn message(kernel: &Path, initrd: Option<&Path>, memory_mib: u64) -> String {
    match boot(kernel, initrd, memory_mib) {
        Ok(_) => panic!("{} boots", kernel.display()),
        Err(error) => error.to_string(),
    }
}

fn word(ram: &GuestRam, at: u64) -> u32 {
    ram.view().read_obj(GuestAddress(at)).unwrap()
}

#[test]
fn kernel_and_initrd_lie_where_boot_params_says() {
    let files = Files::new();
    let kernel = files.put("bzImage", &bzimage());
    let initrd = files.put("initrd", &[0xCD; 10_000]);
    let (ram, entry) = boot(&kernel, Some(&initrd), 256).unwrap();
    assert_eq!(entry.rip, layout::KERNEL + 0x200);
    assert_eq!(word(&ram, layout::KERNEL), 0x9090_9090);
    let at = u64::from(word(&ram, layout::BOOT_PARAMS + 0x218));
    assert_eq!(word(&ram, layout::BOOT_PARAMS + 0x21C), 10_000);
    assert!(
        at.is_multiple_of(4096) && at + 10_000 <= 256 << 20 && at > 250 << 20,
        "{at:#x}"
    );
    assert_eq!(word(&ram, at), 0xCDCD_CDCD);
    let loader: u8 = ram
        .view()
        .read_obj(GuestAddress(layout::BOOT_PARAMS + 0x210))
        .unwrap();
    assert_eq!(loader, 0xFF);
}

#[test]
fn acpi_tables_are_whole_and_linked() {
    let files = Files::new();
    let (ram, _) = boot(&files.put("bzImage", &bzimage()), None, 256).unwrap();
    let table = |at: u64| {
        let len = word(&ram, at + 4) as usize;
        let mut bytes = vec![0; len];
        ram.view().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        let sum = bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
        assert_eq!(sum, 0, "checksum of {}", String::from_utf8_lossy(&bytes[..4]));
        bytes
    };
    let pointer = |at: u64| ram.view().read_obj::<u64>(GuestAddress(at)).unwrap();
    let rsdp = u64::from(word(&ram, layout::BOOT_PARAMS + 0x70));
    assert_eq!(word(&ram, rsdp), u32::from_le_bytes(*b"RSD "));
    let xsdt_at = pointer(rsdp + 24);
    assert_eq!(&table(xsdt_at)[..4], b"XSDT");
    let fadt_at = pointer(xsdt_at + 36);
    assert_eq!(&table(fadt_at)[..4], b"FACP");
    // No VGA, no CMOS clock, but message-signalled interrupts.
    assert_eq!(table(fadt_at)[109..111], [0x24, 0]);
    assert_eq!(&table(pointer(xsdt_at + 44))[..4], b"APIC");
    let dsdt = table(pointer(fadt_at + 140));
    assert_eq!(&dsdt[..4], b"DSDT");
    let has = |text: &[u8]| dsdt.windows(text.len()).any(|w| w == text);
    assert!(has(b"LNRO0005") && has(b"COM1") && has(b"_S5_"));
}

#[test]
fn the_reset_stub_is_where_a_reset_jumps_to() {
    let files = Files::new();
    let (ram, _) = boot(&files.put("bzImage", &bzimage()), None, 256).unwrap();
    let mut stub = [0; 7];
    ram.view()
        .read_slice(&mut stub, GuestAddress(layout::RESET_VECTOR))
        .unwrap();
    assert_eq!(stub, [0xB0, 0x01, 0xBA, 0x04, 0x06, 0xEE, 0xF4]);
}

#[test]
fn files_that_are_no_kernels_are_refused_with_the_reason_and_the_cure() {
    let files = Files::new();
    let missing = message(&files.0.path().join("none"), None, 256);
    assert!(
        missing.contains("none: cannot read it") && missing.contains("--kernel"),
        "{missing}"
    );
    assert!(message(files.0.path(), None, 256).contains("cannot read it"));
    assert!(message(&files.put("empty", b""), None, 256).contains("not a bzImage"));

    let mut short = bzimage();
    short.truncate(3000);
    let short = message(&files.put("short", &short), None, 256);
    assert!(
        short.contains("truncated: its header announces 5632 bytes, it has 3000"),
        "{short}"
    );
    let mut header_only = bzimage();
    header_only.truncate(0x210);
    assert!(message(&files.put("head", &header_only), None, 256).contains("truncated"));

    let mut old = bzimage();
    old[0x206] = 0x09;
    assert!(message(&files.put("old", &old), None, 256).contains("boot protocol 2.9 is too old"));
    let mut thirty_two = bzimage();
    thirty_two[0x236] = 0;
    assert!(message(&files.put("i386", &thirty_two), None, 256).contains("32-bit kernel"));
}

#[test]
fn every_single_byte_of_a_header_may_lie() {
    let files = Files::new();
    let good = bzimage();
    // Nothing a kernel file says may panic or write outside the guest: any answer will do.
    for at in 0x1F1..0x270 {
        for value in [0x00, 0x7F, 0xFF] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let _ = boot(&files.put("lie", &bytes), None, 128);
        }
    }
}

#[test]
fn too_little_memory_is_refused_with_what_would_do() {
    let files = Files::new();
    let kernel = files.put("bzImage", &bzimage());
    let text = message(&kernel, None, 64);
    assert!(
        text.contains("size=64M is below") && text.contains("--memory size=88M"),
        "{text}"
    );
    assert!(boot(&kernel, None, 88).is_ok());
    let initrd = files.put("initrd", &vec![0; 30 << 20]);
    assert!(message(&kernel, Some(&initrd), 96).contains("initrd 30 MiB"));
}

#[test]
fn an_unreadable_initrd_and_an_endless_command_line_are_refused() {
    let files = Files::new();
    let kernel = files.put("bzImage", &bzimage());
    let text = message(&kernel, Some(&files.0.path().join("gone")), 256);
    assert!(
        text.contains("gone: cannot read it; give a readable file with --initrd"),
        "{text}"
    );
    let ram = GuestRam::new(256 << 20).unwrap();
    let boot = BootFiles {
        kernel,
        initrd: None,
        cmdline: "x".repeat(3000),
    };
    let platform = Platform {
        cpus: 1,
        devices: vec![],
    };
    let text = load(&ram, &boot, &platform).unwrap_err().to_string();
    assert!(text.contains("3000 bytes, this kernel takes 2047"), "{text}");
}
