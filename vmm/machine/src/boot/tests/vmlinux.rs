//! ELF kernels: what is loaded where, and every lie that their headers can tell.

use super::*;

/// A program header: what the file has from `from` on and what is to be in memory.
#[derive(Clone, Copy)]
struct LoadHeader {
    kind: u32,
    from: u64,
    to: u64,
    in_file: u64,
    in_memory: u64,
}

const TEXT: LoadHeader = LoadHeader {
    kind: 1,
    from: 0x1000,
    to: 0x100_0000,
    in_file: 0x1000,
    in_memory: 0x1000,
};
/// Half of it is zeros that the file does not have; its end is the kernel's.
const DATA: LoadHeader = LoadHeader {
    kind: 1,
    from: 0x2000,
    to: 0x120_0000,
    in_file: 0x800,
    in_memory: 0x40_0000,
};
const ENTRY: u64 = 0x100_0123;

/// An ELF file with these program headers, the second one first, and a byte of its own in every page.
fn vmlinux(loads: &[LoadHeader]) -> Vec<u8> {
    let mut file = vec![0u8; 0x2800];
    file[0x1000..0x2000].fill(0x90);
    file[0x2000..].fill(0xDA);
    file[..8].copy_from_slice(b"\x7FELF\x02\x01\x01\x00");
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &ENTRY.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &(loads.len() as u16).to_le_bytes());
    for (number, load) in loads.iter().rev().enumerate() {
        let at = 64 + number * 56;
        put(at, &load.kind.to_le_bytes());
        // The virtual address says nothing about where it is loaded.
        for (field, value) in [
            (8, load.from),
            (16, load.to.wrapping_add(0xFFFF_FFFF_8000_0000)),
            (24, load.to),
            (32, load.in_file),
            (40, load.in_memory),
        ] {
            put(at + field, &value.to_le_bytes());
        }
    }
    file
}

fn answer(files: &Files, bytes: &[u8]) -> String {
    message(&files.put("vmlinux", bytes), None, 256)
}

/// The message to a kernel whose data segment is this one.
fn answer_to_data(data: LoadHeader) -> String {
    answer(&Files::new(), &vmlinux(&[TEXT, data]))
}

#[test]
fn segments_lie_at_their_physical_addresses_and_the_first_instruction_is_the_files() {
    let files = Files::new();
    let note = LoadHeader {
        kind: 4,
        to: 0,
        ..TEXT
    };
    let kernel = files.put("vmlinux", &vmlinux(&[TEXT, DATA, note]));
    let (ram, entry) = boot(&kernel, None, 256).unwrap();
    assert_eq!((entry.rip, entry.boot_params), (ENTRY, layout::BOOT_PARAMS));
    for (at, value) in [
        (TEXT.to, 0x9090_9090),
        (TEXT.to + 0xFFC, 0x9090_9090),
        (TEXT.to + 0x1000, 0),
        (DATA.to, 0xDADA_DADA),
        (DATA.to + 0x7FC, 0xDADA_DADA),
        (DATA.to + 0x800, 0),
        (layout::KERNEL, 0),
    ] {
        assert_eq!(word(&ram, at), value, "{at:#x}");
    }
}

#[test]
fn boot_params_has_the_setup_header_that_an_elf_file_lacks() {
    let files = Files::new();
    let kernel = files.put("vmlinux", &vmlinux(&[TEXT, DATA]));
    let initrd = files.put("initrd", &[0xCD; 10_000]);
    let (ram, _) = boot(&kernel, Some(&initrd), 256).unwrap();
    let byte = |at: u64| {
        ram.view()
            .read_obj::<u8>(GuestAddress(layout::BOOT_PARAMS + at))
            .unwrap()
    };
    let field = |at: u64| word(&ram, layout::BOOT_PARAMS + at);
    assert_eq!(field(0x202), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(field(0x206) & 0xFFFF, 0x020C, "protocol");
    assert_eq!((byte(0x1FE), byte(0x1FF)), (0x55, 0xAA));
    assert_eq!(byte(0x1EF), 0, "the sentinel of a loader that clears the page");
    assert_eq!((byte(0x210), byte(0x211)), (0xFF, 1), "loader, and no KASLR");
    assert_eq!(field(0x228), layout::CMDLINE as u32);
    assert_eq!(u64::from(field(0x258)), TEXT.to);
    assert_eq!(u64::from(field(0x260)), DATA.to + DATA.in_memory - TEXT.to);
    assert!(byte(0x1E8) >= 3, "a memory map");
    let at = u64::from(field(0x218));
    assert_eq!((field(0x21C), word(&ram, at)), (10_000, 0xCDCD_CDCD));
    assert!(at > 250 << 20 && at < 256 << 20, "as high as it fits: {at:#x}");
}

#[test]
fn an_initrd_lies_behind_all_memory_of_the_kernel_or_nowhere() {
    let files = Files::new();
    let initrd = files.put("initrd", &vec![0xCD; 30 << 20]);
    let large = LoadHeader {
        in_memory: 100 << 20,
        ..DATA
    };
    let kernel = files.put("vmlinux", &vmlinux(&[TEXT, large]));
    let end = large.to + large.in_memory;
    let (ram, _) = boot(&kernel, Some(&initrd), 184).unwrap();
    let at = u64::from(word(&ram, layout::BOOT_PARAMS + 0x218));
    assert!(at >= end, "{at:#x} is inside the kernel, which ends at {end:#x}");
    let text = message(&kernel, Some(&initrd), 160);
    assert!(
        text.contains("size=160M is below") && text.contains("kernel 118 MiB and initrd 30 MiB"),
        "{text}"
    );
}

#[test]
fn files_that_are_no_kernels_of_this_machine_are_refused_with_the_field_and_its_value() {
    let files = Files::new();
    let good = vmlinux(&[TEXT, DATA]);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        answer(&files, &bytes)
    };
    assert!(with(4, 1).contains("32-bit kernel; give one built for amd64"));
    for (at, value, words) in [
        (4, 7, "class 7, such a kernel has 2"),
        (5, 2, "byte order 2, such a kernel has 1"),
        (18, 183, "machine 183, such a kernel has 62"),
        (16, 1, "type 1, such a kernel has 2"),
        (16, 3, "type 3, such a kernel has 2"),
        (54, 32, "program header size 32, such a kernel has 56"),
    ] {
        let text = with(at, value);
        assert!(text.contains(words), "{text}");
    }
    let text = answer(&files, b"\x7FELF and so on");
    assert!(
        text.contains("truncated: its header announces 64 bytes, it has 14"),
        "{text}"
    );
}

#[test]
fn segments_that_cannot_be_where_they_want_are_refused_with_their_number_and_place() {
    let data = |change: fn(&mut LoadHeader)| {
        let mut data = DATA;
        change(&mut data);
        answer_to_data(data)
    };
    for (text, words) in [
        (
            data(|d| d.in_memory = 0x7FF),
            "header 0 wants 2047 bytes at 0x1200000, less than the file has of it",
        ),
        (data(|d| d.in_memory = 0), "less than the file has of it"),
        (
            data(|d| d.to = 0),
            "header 0 wants 4194304 bytes at 0x0, below 1 MiB",
        ),
        (data(|d| d.to = layout::KERNEL - 1), "at 0xfffff, below 1 MiB"),
        (
            data(|d| d.to = 0x100_0FFF),
            "at 0x1000fff, where another one already is",
        ),
        (
            data(|d| d.to = 0xC1_0000),
            "header 1 wants 4096 bytes at 0x1000000, where another",
        ),
        (
            data(|d| d.to = layout::LOW_RAM_END),
            "at 0xc0000000, beyond 3 GiB",
        ),
        (data(|d| d.to = 1 << 32), "at 0x100000000, beyond 3 GiB"),
        (data(|d| d.to = u64::MAX), "at 0xffffffffffffffff, beyond 3 GiB"),
        (
            data(|d| d.in_memory = u64::MAX),
            "wants 18446744073709551615 bytes",
        ),
    ] {
        assert!(text.contains(words) && text.contains("or the bzImage"), "{text}");
    }
}

#[test]
fn files_that_end_before_their_headers_say_are_refused_with_both_sizes() {
    let files = Files::new();
    let good = vmlinux(&[TEXT, DATA]);
    let text = answer(&files, &good[..0x27FF]);
    assert!(text.contains("announces 10240 bytes, it has 10239"), "{text}");
    let text = answer(&files, &good[..100]);
    assert!(text.contains("announces 176 bytes, it has 100"), "{text}");
    for change in [
        |d: &mut LoadHeader| d.from = u64::MAX,
        |d: &mut LoadHeader| {
            (d.in_file, d.in_memory) = (u64::MAX, u64::MAX);
        },
    ] {
        let mut data = DATA;
        change(&mut data);
        let text = answer_to_data(data);
        assert!(text.contains("announces 18446744073709551615 bytes"), "{text}");
    }
    let mut far_table = good.clone();
    far_table[32..40].fill(0xFF);
    let text = answer(&files, &far_table);
    assert!(text.contains("announces 18446744073709551615 bytes"), "{text}");
}

#[test]
fn a_kernel_without_segments_or_without_its_first_instruction_is_refused() {
    let files = Files::new();
    let empty = LoadHeader {
        in_file: 0,
        in_memory: 0,
        ..DATA
    };
    for loads in [&[][..], &[LoadHeader { kind: 4, ..TEXT }], &[empty]] {
        let text = answer(&files, &vmlinux(loads));
        assert!(text.contains("no segment to load (PT_LOAD)"), "{text}");
    }
    // Neither zeros behind a segment nor the place where nothing is can be run.
    for entry in [DATA.to + 0x800, TEXT.to - 1, 0, u64::MAX] {
        let mut bytes = vmlinux(&[TEXT, DATA]);
        bytes[24..32].copy_from_slice(&entry.to_le_bytes());
        let text = answer(&files, &bytes);
        assert!(
            text.contains(&format!("entry point {entry:#x} is in no segment")),
            "{text}"
        );
    }
}

#[test]
fn a_segment_of_zeros_alone_needs_nothing_of_the_file() {
    let zeros = LoadHeader {
        from: u64::MAX,
        in_file: 0,
        ..DATA
    };
    let files = Files::new();
    let kernel = files.put("vmlinux", &vmlinux(&[TEXT, zeros]));
    let (ram, _) = boot(&kernel, None, 256).unwrap();
    assert_eq!((word(&ram, TEXT.to), word(&ram, zeros.to)), (0x9090_9090, 0));
}

#[test]
fn too_little_memory_for_a_vmlinux_is_refused_with_what_would_do() {
    let files = Files::new();
    let large = LoadHeader {
        in_memory: 100 << 20,
        ..DATA
    };
    let kernel = files.put("vmlinux", &vmlinux(&[TEXT, large]));
    let text = message(&kernel, None, 64);
    assert!(
        text.contains("size=64M is below") && text.contains("--memory size=152M"),
        "{text}"
    );
    assert!(boot(&kernel, None, 152).is_ok());
}

#[test]
fn every_single_byte_of_an_elf_header_may_lie() {
    let files = Files::new();
    let good = vmlinux(&[TEXT, DATA]);
    // Nothing a kernel file says may panic or write outside the guest: any answer will do.
    for at in 0..64 + 2 * 56 {
        for value in [0x00, 0x01, 0x7F, 0x80, 0xFF] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let _ = boot(&files.put("lie", &bytes), None, 128);
        }
    }
}
