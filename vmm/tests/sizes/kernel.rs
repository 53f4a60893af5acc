//! A kernel of a few instructions, as a bzImage: it writes one word to every page of some ranges, anywhere in the
//! guest's memory, and then halts for ever. Any KVM runs it.

use std::ops::Range;

use crate::bzimage::bzimage;

/// Where the boot code of a VMM leaves the table of gigabytes: the second page of its page tables.
const GIGABYTES: u64 = 0xA000;
/// What the boot code maps by itself.
const MAPPED: u64 = 4 << 30;
/// A page of guest memory for one more page table, beyond the kernel.
const TABLE: u64 = 8 << 20;

/// The bzImage of a kernel that writes a number to each page in `ranges`: `first`, and for every page one more. A range
/// above 4 GiB lies in one gigabyte.
pub(crate) fn touching(ranges: &[Range<u64>], first: u64) -> Vec<u8> {
    let mut code = Vec::new();
    let high = ranges.iter().filter(|range| range.end > MAPPED);
    for range in high {
        map_gigabyte(&mut code, (range.end - 1) >> 30);
    }
    // mov rax, first
    immediate(&mut code, 0xB8, first);
    for range in ranges {
        // mov rbx, start; mov rdx, end
        immediate(&mut code, 0xBB, range.start);
        immediate(&mut code, 0xBA, range.end);
        // next: mov [rbx], rax; inc rax; add rbx, 4096; cmp rbx, rdx; jb next
        code.extend([0x48, 0x89, 0x03, 0x48, 0xFF, 0xC0]);
        code.extend([0x48, 0x81, 0xC3, 0, 0x10, 0, 0, 0x48, 0x39, 0xD3]);
        code.extend([0x72, 0xEE]);
    }
    // halt: cli; hlt; jmp halt
    code.extend([0xFA, 0xF4, 0xEB, 0xFC]);
    bzimage(&code)
}

/// Maps gigabyte number `number` onto itself, in pages of 2 MiB.
fn map_gigabyte(code: &mut Vec<u8>, number: u64) {
    // mov rax, entry; mov rdi, TABLE; mov rcx, 512
    immediate(code, 0xB8, number << 30 | 0x83);
    immediate(code, 0xBF, TABLE);
    immediate(code, 0xB9, 512);
    // next: mov [rdi], rax; add rax, 2 MiB; add rdi, 8; dec rcx; jnz next
    code.extend([0x48, 0x89, 0x07, 0x48, 0x05, 0, 0, 0x20, 0, 0x48, 0x83, 0xC7, 8]);
    code.extend([0x48, 0xFF, 0xC9, 0x75, 0xEE]);
    // mov rax, TABLE | 3; mov [GIGABYTES + 8 * number], rax; mov rax, cr3; mov cr3, rax
    immediate(code, 0xB8, TABLE | 3);
    immediate(code, 0xA3, GIGABYTES + 8 * number);
    code.extend([0x0F, 0x20, 0xD8, 0x0F, 0x22, 0xD8]);
}

/// An instruction with a 64-bit operand.
fn immediate(code: &mut Vec<u8>, opcode: u8, value: u64) {
    code.extend([0x48, opcode]);
    code.extend(value.to_le_bytes());
}
