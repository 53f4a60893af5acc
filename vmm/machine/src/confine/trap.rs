//! The end of a process that made a forbidden system call.
#![allow(unsafe_code)]
// UNSAFETY: a signal handler, which reads what the kernel says about the call and may do next to nothing.

use std::cell::Cell;
use std::io;

use super::names;
use super::role::Role;

thread_local! {
    /// Constant and without a destructor, so that the handler may look at it.
    static ROLE: Cell<Option<Role>> = const { Cell::new(None) };
}

/// Remembers what the calling thread is, for the message.
pub fn note_role(role: Role) {
    ROLE.set(Some(role));
}

/// Sets the handler for forbidden system calls, and none for what a page that is lost or a wild pointer raises.
///
/// The standard library's own for these looks for an overflow of the stack and then sets the default again, which
/// confinement forbids: a crash would be taken for a breach.
pub(super) fn install() -> io::Result<()> {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the default action runs no code of this process.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: a zeroed sigaction has an empty mask and no flags; the handler has the signature of SA_SIGINFO and does
    // only what a handler may do.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_forbidden_call as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many arenas malloc may make: the main one alone. The first time that glibc makes another one smaller it opens
/// /proc/sys/vm/overcommit_memory. Threads have caches of their own, and fewer arenas keep less free memory.
const ARENAS: libc::c_int = 1;

/// Settles for malloc what it would otherwise ask the system when it is confined already.
pub(super) fn settle_allocator() {
    // SAFETY: sets a number; called before threads are started. Refused, it changes nothing.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Where in `siginfo_t` the kernel puts the system call's number: behind three words, padding and an address.
const CALL: usize = 24;

extern "C" fn on_forbidden_call(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a whole siginfo_t of SIGSYS to the handler.
    let call = unsafe { info.cast::<u8>().add(CALL).cast::<i32>().read_unaligned() };
    // SAFETY: and the registers of the thread that made the call.
    let registers = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let mut line = Line::default();
    line.add("levy: a thread of the VMM (");
    line.add(ROLE.get().map_or("unknown", Role::name));
    line.add(") made a system call that its confinement forbids, and the guest ends: ");
    line.add(names::name(i64::from(call)).unwrap_or("a new one"));
    line.add(" (");
    line.number(call.unsigned_abs());
    line.add(") with ");
    for register in [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX] {
        line.hexadecimal(registers[register as usize].cast_unsigned());
        line.add(" ");
    }
    line.add("\n");
    // A full pipe would hold the line, and keep the process alive.
    let mut stderr = libc::pollfd {
        fd: 2,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: plain values on the stack. The last call is forbidden to all roles, and with SIGSYS blocked in its
    // handler the kernel ends the process by that signal, which the parent that waits for the process can see.
    unsafe {
        if libc::poll(&raw mut stderr, 1, 0) > 0 {
            libc::write(2, line.bytes.as_ptr().cast(), line.len);
        }
        libc::syscall(libc::SYS_execve, 0, 0, 0);
        // Reached only where calls are not trapped any more.
        libc::_exit(128 + libc::SIGSYS);
    }
}

/// A line made without an allocator.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 256],
            len: 0,
        }
    }
}

impl Line {
    fn add(&mut self, text: &str) {
        let room = &mut self.bytes[self.len..];
        let len = text.len().min(room.len());
        room[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
    }

    fn hexadecimal(&mut self, number: u64) {
        self.add("0x");
        let first = (63 - number.leading_zeros().min(63)) / 4 * 4;
        for shift in (0..=first).rev().step_by(4) {
            let digit = (number >> shift & 0xF) as usize;
            self.add(&"0123456789abcdef"[digit..=digit]);
        }
    }

    fn number(&mut self, mut number: u32) {
        let mut digits = [0; 10];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.add(std::str::from_utf8(&digits[at..]).unwrap_or_default());
    }
}
