//! The programs that a guest can run, as assembled by the compiler of this crate.
#![allow(unsafe_code)]
// UNSAFETY: `global_asm!` and the extern labels around it are how guest code gets into this crate as bytes. The
// host never runs it: it is only copied into a guest.

use std::arch::global_asm;
use std::ops::Range;

/// What one vCPU does, and where.
#[derive(Debug, Clone)]
pub struct Work {
    /// The program.
    pub program: Program,
    /// The pages it may touch, counted from the start of the memory under test.
    pub pages: Range<u32>,
    /// Where its random numbers start; two vCPUs with equal seeds make equal choices.
    pub seed: u64,
}

/// What a vCPU can do.
#[derive(Debug, Clone, Copy)]
pub enum Program {
    /// Random accesses of one word in a random page: the reader, the writer, and (with the working set changed from
    /// outside, [`crate::Guest::set_working_set`]) the toucher.
    Access {
        /// How many of 1024 accesses write; the others read.
        write_share: u16,
    },
    /// Checks random pages in full, and checks, then changes, pages of a window that moves on.
    Churn {
        /// How many neighbouring pages are being written at a time; the others stay quiet.
        window: u32,
        /// How many writes happen before the window moves on by its own length; 0: it stays.
        dwell: u32,
    },
    /// Fills page after page with one word each: `value + stride * page`.
    Fill {
        /// What the words of page 0 are.
        value: u64,
        /// How the value grows from page to page; 0 makes all pages alike.
        stride: u64,
        /// After how many rounds the program ends by itself; 0: never.
        rounds: u32,
    },
}

impl Work {
    /// Random accesses over `pages`, `write_share` of 1024 of them writes.
    pub fn access(pages: Range<u32>, write_share: u16) -> Self {
        Self::new(Program::Access { write_share }, pages)
    }

    /// Self-checking churn over `pages` with a window of `window` pages that moves on every `dwell` writes.
    pub fn churn(pages: Range<u32>, window: u32, dwell: u32) -> Self {
        Self::new(Program::Churn { window, dwell }, pages)
    }

    /// One round of filling `pages`, all with the same word.
    pub fn fill(pages: Range<u32>, value: u64) -> Self {
        Self::new(
            Program::Fill {
                value,
                stride: 0,
                rounds: 1,
            },
            pages,
        )
    }

    /// The same with another word for each page, counted up from `value`.
    pub fn fill_unlike(pages: Range<u32>, value: u64) -> Self {
        let (stride, rounds) = (1, 1);
        Self::new(
            Program::Fill {
                value,
                stride,
                rounds,
            },
            pages,
        )
    }

    fn new(program: Program, pages: Range<u32>) -> Self {
        let seed = 0x9e37_79b9_7f4a_7c15 ^ (u64::from(pages.start) << 20);
        Self { program, pages, seed }
    }
}

impl Program {
    /// The program's code: it may be placed anywhere, and its first byte is its entry.
    pub(crate) fn code(self) -> &'static [u8] {
        let (start, end) = match self {
            Self::Access { .. } => (&raw const ring3_access, &raw const ring3_access_end),
            Self::Churn { .. } => (&raw const ring3_churn, &raw const ring3_churn_end),
            Self::Fill { .. } => (&raw const ring3_fill, &raw const ring3_fill_end),
        };
        // SAFETY: both labels bound one block of bytes in this crate's read-only data.
        unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }
    }
}

/// The port a program writes to when it has seen the stop flag or has nothing left to do.
pub(crate) const PORT_DONE: u16 = 0x10;
/// The port a program writes to when it has found a wrong page.
pub(crate) const PORT_WRONG: u16 = 0x11;

unsafe extern "C" {
    static ring3_access: u8;
    static ring3_access_end: u8;
    static ring3_churn: u8;
    static ring3_churn_end: u8;
    static ring3_fill: u8;
    static ring3_fill_end: u8;
}

/// Byte offsets of the control page's fields, shared by the host ([`crate::board`]) and the programs below.
pub(crate) mod field {
    /// Host: not 0 asks the program to end.
    pub(crate) const STOP: usize = 0;
    /// Guest: words or pages read.
    pub(crate) const READS: usize = 8;
    /// Guest: words or pages written.
    pub(crate) const WRITES: usize = 16;
    /// Guest: full rounds.
    pub(crate) const PASSES: usize = 24;
    /// Guest: wrong pages found.
    pub(crate) const ERRORS: usize = 32;
    /// Guest: address of the first wrong word, what it should have been, what it was.
    pub(crate) const WRONG_AT: usize = 40;
    /// See [`WRONG_AT`].
    pub(crate) const WRONG_WANTED: usize = 48;
    /// See [`WRONG_AT`].
    pub(crate) const WRONG_FOUND: usize = 56;
    /// Guest: most TSC ticks between two accesses; the host sets it back to 0.
    pub(crate) const STALL: usize = 64;
    /// Host: first page of the working set or window, as an index into the memory under test.
    pub(crate) const FIRST: usize = 72;
    /// Host: pages in the working set or window.
    pub(crate) const PAGES: usize = 80;
    /// Host: TSC ticks to let pass after each access.
    pub(crate) const PACE: usize = 88;
    /// Host: address of page 0 of the memory under test.
    pub(crate) const BASE: usize = 96;
    /// Host: first of all pages the program may touch.
    pub(crate) const ALL_FIRST: usize = 104;
    /// Host: how many pages the program may touch.
    pub(crate) const ALL_PAGES: usize = 112;
    /// Host: address of the table of expected page states (one u32 per page of the memory under test).
    pub(crate) const TABLE: usize = 120;
    /// Host: the program's own parameters.
    pub(crate) const PARAMETER: [usize; 3] = [128, 136, 144];
}

// Registers on entry: rdi = control page, rsp = top of the stack, r8 = seed (not 0).
// Kept throughout: rdi, rsp, r8 (random state), r9 (TSC after the last access), rbx and r15 as each program says.
global_asm!(
    ".pushsection .rodata.ring3, \"a\"",
    // r8 = next random number, rax destroyed (xorshift64).
    ".macro RING3_RANDOM",
    "mov rax, r8", "shl rax, 13", "xor r8, rax",
    "mov rax, r8", "shr rax, 7", "xor r8, rax",
    "mov rax, r8", "shl rax, 17", "xor r8, rax",
    ".endm",
    // rax = random page index in [first, first + pages), which are control page fields.
    ".macro RING3_PAGE first, pages",
    "mov rax, r8", "shr rax, 32", "imul rax, [rdi + \\pages]", "shr rax, 32", "add rax, [rdi + \\first]",
    ".endm",
    // rax = TSC; rdx destroyed.
    ".macro RING3_TSC", "rdtsc", "shl rdx, 32", "or rax, rdx", ".endm",
    // Book the time since the last access, then let the pace pass. No fence is needed to see a stall: a load or
    // store that faults is retired only after the fault is served, and the clock is read again then.
    ".macro RING3_CLOCK",
    "RING3_TSC",
    "mov rdx, rax", "sub rdx, r9", "mov r9, rax",
    "cmp rdx, [rdi + {stall}]", "jbe 31f", "mov [rdi + {stall}], rdx",
    "31: cmp qword ptr [rdi + {pace}], 0", "je 33f",
    "mov rcx, r9", "add rcx, [rdi + {pace}]",
    "32: pause", "RING3_TSC", "cmp rax, rcx", "jb 32b",
    "mov r9, rax",
    "33:",
    ".endm",
    // Leave for the host; when it enters again, the clock starts anew.
    ".macro RING3_EXIT port", "out \\port, al", "RING3_TSC", "mov r9, rax", ".endm",

    // ---- access: parameter 0 = writes of 1024
    ".balign 16",
    ".globl ring3_access", ".hidden ring3_access",
    "ring3_access:",
    "RING3_TSC", "mov r9, rax",
    "21: cmp qword ptr [rdi + {stop}], 0", "jne 9f",
    "RING3_RANDOM",
    "RING3_PAGE {first}, {pages}",
    "shl rax, 12", "add rax, [rdi + {base}]",
    "mov ecx, r8d", "and ecx, 0xff8", "add rax, rcx",
    "mov ecx, r8d", "shr ecx, 14", "and ecx, 1023",
    "cmp rcx, [rdi + {p0}]", "jae 2f",
    "mov [rax], r8", "inc qword ptr [rdi + {writes}]", "jmp 3f",
    "2: mov rsi, [rax]", "inc qword ptr [rdi + {reads}]",
    "3: RING3_CLOCK",
    "jmp 21b",
    "9: RING3_EXIT {done}", "jmp 21b",
    ".globl ring3_access_end", ".hidden ring3_access_end",
    "ring3_access_end:",

    // ---- fill: parameters value, stride, rounds; rbx = control page while rdi is busy, r15 = rounds done
    ".balign 16",
    ".globl ring3_fill", ".hidden ring3_fill",
    "ring3_fill:",
    "mov rbx, rdi", "xor r15d, r15d", "RING3_TSC", "mov r9, rax",
    "21: mov rsi, [rbx + {first}]", "mov r10, rsi", "add r10, [rbx + {pages}]",
    "2: cmp qword ptr [rbx + {stop}], 0", "jne 9f",
    "cmp rsi, r10", "jae 3f",
    "mov rax, rsi", "imul rax, [rbx + {p1}]", "add rax, [rbx + {p0}]",
    "mov rdi, rsi", "shl rdi, 12", "add rdi, [rbx + {base}]",
    "mov ecx, 512", "rep stosq",
    "mov rdi, rbx",
    "inc qword ptr [rbx + {writes}]", "inc rsi",
    "RING3_CLOCK",
    "jmp 2b",
    "3: inc qword ptr [rbx + {passes}]", "inc r15",
    "cmp r15, [rbx + {p2}]", "jne 21b",
    "xor r15d, r15d", "RING3_EXIT {done}", "jmp 21b",
    "9: RING3_EXIT {done}", "jmp 2b",
    ".globl ring3_fill_end", ".hidden ring3_fill_end",
    "ring3_fill_end:",

    // ---- churn: parameter 0 = dwell; r15 = writes left before the window moves
    // State e of a page (0..=255, in the table): word (e / 16) * 33 is e; the others start at c = (e / 16) * K and grow by c
    // where e / 16 is even, by nothing where it is odd. So e = 0 is a zero page, pages of equal state are equal, half of
    // the states compress well, a change of e is mostly one word, somewhere, and every 16th time the whole page.
    ".balign 16",
    ".globl ring3_churn", ".hidden ring3_churn",
    "ring3_churn:",
    "mov r15, [rdi + {p0}]", "RING3_TSC", "mov r9, rax",
    "21: cmp qword ptr [rdi + {stop}], 0", "jne 9f",
    "RING3_RANDOM",
    "RING3_PAGE {all_first}, {all_pages}",
    "call 5f",
    "RING3_CLOCK",
    "RING3_RANDOM",
    "RING3_PAGE {first}, {pages}",
    "call 5f",
    // bump the page just checked
    "inc r13d", "and r13d, 255",
    "mov r11, [rdi + {table}]", "mov [r11 + r12 * 4], r13d",
    "inc qword ptr [rdi + {writes}]",
    "test r13d, 15", "jz 2f",
    "mov ebx, r13d", "shr ebx, 4", "imul ebx, ebx, 33",
    "mov [r14 + rbx * 8], r13", "jmp 3f",
    "2: call 7f",
    "3: RING3_CLOCK",
    "dec r15", "jnz 21b",
    // the window moves on, and starts again where it would leave the pages
    "mov r15, [rdi + {p0}]",
    "mov rax, [rdi + {first}]", "add rax, [rdi + {pages}]",
    "mov rcx, [rdi + {all_first}]", "mov rdx, rcx", "add rdx, [rdi + {all_pages}]",
    "mov rsi, rax", "add rsi, [rdi + {pages}]",
    "cmp rsi, rdx", "jbe 4f",
    "mov rax, rcx", "inc qword ptr [rdi + {passes}]",
    "4: mov [rdi + {first}], rax",
    "jmp 21b",
    "9: RING3_EXIT {done}", "jmp 21b",

    // check page rax: r12 = page, r13 = its state, r14 = its address; a wrong page is reported and put right
    "5: mov r12, rax",
    "mov r11, [rdi + {table}]", "mov r13d, [r11 + r12 * 4]",
    "mov r14, r12", "shl r14, 12", "add r14, [rdi + {base}]",
    "inc qword ptr [rdi + {reads}]",
    "call 6f",
    "xor ecx, ecx",
    "51: mov rdx, r10", "cmp ecx, ebx", "cmove rdx, r13",
    "mov rax, [r14 + rcx * 8]", "cmp rax, rdx", "jne 8f",
    "add r10, rsi", "inc ecx", "cmp ecx, 512", "jb 51b",
    "ret",
    // r10 = first word, rsi = growth, rbx = place of the state's own word for state r13
    "6: mov ebx, r13d", "shr ebx, 4", "imul ebx, ebx, 33",
    "mov r10d, r13d", "shr r10d, 4", "xor esi, esi", "mov eax, r10d",
    "mov rdx, 0x9e3779b97f4a7c15", "imul r10, rdx",
    "test al, 1", "jnz 61f", "mov rsi, r10",
    "61: ret",
    // write the whole page r14 as state r13 says
    "7: call 6b",
    "xor ecx, ecx",
    "71: mov rdx, r10", "cmp ecx, ebx", "cmove rdx, r13",
    "mov [r14 + rcx * 8], rdx", "add r10, rsi", "inc ecx", "cmp ecx, 512", "jb 71b",
    "ret",
    // word rcx of the page is rax, not rdx
    "8: cmp qword ptr [rdi + {errors}], 0", "jne 81f",
    "lea rcx, [r14 + rcx * 8]",
    "mov [rdi + {wrong_at}], rcx", "mov [rdi + {wrong_wanted}], rdx", "mov [rdi + {wrong_found}], rax",
    "81: inc qword ptr [rdi + {errors}]",
    "RING3_EXIT {wrong}",
    "jmp 7b",
    ".globl ring3_churn_end", ".hidden ring3_churn_end",
    "ring3_churn_end:",
    ".popsection",
    stop = const field::STOP,
    reads = const field::READS,
    writes = const field::WRITES,
    passes = const field::PASSES,
    errors = const field::ERRORS,
    wrong_at = const field::WRONG_AT,
    wrong_wanted = const field::WRONG_WANTED,
    wrong_found = const field::WRONG_FOUND,
    stall = const field::STALL,
    first = const field::FIRST,
    pages = const field::PAGES,
    pace = const field::PACE,
    base = const field::BASE,
    all_first = const field::ALL_FIRST,
    all_pages = const field::ALL_PAGES,
    table = const field::TABLE,
    p0 = const field::PARAMETER[0],
    p1 = const field::PARAMETER[1],
    p2 = const field::PARAMETER[2],
    done = const PORT_DONE,
    wrong = const PORT_WRONG,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_has_code_that_fits_one_page() {
        for program in [
            Program::Access { write_share: 0 },
            Program::Churn { window: 1, dwell: 1 },
            Program::Fill {
                value: 0,
                stride: 0,
                rounds: 1,
            },
        ] {
            let code = program.code();
            assert!(
                (32..=crate::PAGE).contains(&code.len()),
                "{program:?}: {} bytes",
                code.len()
            );
        }
    }
}
