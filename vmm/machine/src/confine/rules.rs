//! Which system calls each role may make, and who makes them.
//!
//! What is not listed ends the process. Never to be listed: anything that opens or creates a file by name (open*,
//! creat, memfd_*, mknod, link, rename), starts a process or a program (fork, vfork, exec*, clone without
//! CLONE_THREAD), changes modes, owners or seals (fchmod*, fchown*, F_ADD_SEALS), looks into or steers other processes
//! (ptrace, process_vm_*, pidfd_*, kill), changes the machine (mount, bpf, io_uring_*, ...), or makes memory
//! executable. A test holds the tables against that list.

use libc as sys;

use super::role::Role;

/// One permission: a system call, what its arguments must be, and whose it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// The system call's number.
    pub(super) call: i64,
    /// Conditions on its arguments, all of which must hold.
    pub(super) when: &'static [When],
    /// An error that the caller gets instead of the call, where it copes with that.
    pub(super) refuse: Option<i32>,
    /// Who needs it. For readers of this file.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for readers and for the test of the tables")
    )]
    pub(super) caller: &'static str,
}

/// A condition on an argument, counted from 0.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    /// Its 32 low bits are this value.
    Is(u8, u64),
    /// These of its bits (mask) have this value.
    Bits(u8, u64, u64),
    /// It is the number of this process.
    OwnProcess(u8),
}

const fn may(call: i64, caller: &'static str) -> Rule {
    only(call, &[], caller)
}

const fn only(call: i64, when: &'static [When], caller: &'static str) -> Rule {
    Rule {
        call,
        when,
        refuse: None,
        caller,
    }
}

const fn refuse(call: i64, errno: i32, caller: &'static str) -> Rule {
    Rule {
        call,
        when: &[],
        refuse: Some(errno),
        caller,
    }
}

/// The auxiliary vector of the process itself.
const PR_GET_AUXV: u64 = 0x4155_5856;

const NOT_EXECUTABLE: &[When] = &[When::Bits(2, sys::PROT_EXEC as u64, 0)];

/// Memory, locks, time, the end of a thread or of the process: what Rust's runtime and the allocator do anywhere.
const ANYWHERE: &[Rule] = &[
    may(sys::SYS_read, "eventfds, sockets and files that are open"),
    may(
        sys::SYS_write,
        "eventfds, sockets and files that are open; log lines",
    ),
    may(
        sys::SYS_writev,
        "the C library's last words, before it aborts: of a broken heap",
    ),
    may(
        sys::SYS_poll,
        "device threads, the control socket; whether standard error takes last words",
    ),
    may(
        sys::SYS_ppoll,
        "the fault handler, rings of offers; whether standard error takes last words",
    ),
    may(sys::SYS_close, "descriptors at the end of what owns them"),
    only(
        sys::SYS_fcntl,
        &[When::Is(1, sys::F_GETFD as u64)],
        "debug builds look whether what they close is open",
    ),
    may(sys::SYS_futex, "locks, channels, joining threads"),
    may(sys::SYS_brk, "malloc"),
    only(sys::SYS_mmap, NOT_EXECUTABLE, "malloc; mappings of pool pages"),
    only(
        sys::SYS_mprotect,
        NOT_EXECUTABLE,
        "malloc's arenas; guard pages of stacks",
    ),
    may(sys::SYS_munmap, "malloc; the end of a thread"),
    may(sys::SYS_mremap, "realloc; bringing broken pages home"),
    may(
        sys::SYS_madvise,
        "free; stacks of ended threads; guest pages given back",
    ),
    only(
        sys::SYS_prctl,
        &[When::Is(0, PR_GET_AUXV)],
        "rustix, which looks for the vDSO at the first use of a clock",
    ),
    may(
        sys::SYS_clock_gettime,
        "Instant::now where the vDSO cannot; CPU time of threads",
    ),
    may(sys::SYS_clock_nanosleep, "thread::sleep"),
    may(sys::SYS_nanosleep, "thread::sleep of older C libraries"),
    may(
        sys::SYS_sched_yield,
        "spinning locks; a page that is busy for a moment",
    ),
    may(sys::SYS_sched_getaffinity, "malloc, for its number of arenas"),
    may(sys::SYS_getrandom, "HashMap, malloc"),
    may(sys::SYS_getpid, "abort; status requests"),
    may(sys::SYS_gettid, "abort"),
    only(
        sys::SYS_tgkill,
        &[When::OwnProcess(0)],
        "abort; the kick that gets a vCPU out of KVM_RUN",
    ),
    may(sys::SYS_rt_sigprocmask, "abort; the end of a thread"),
    may(sys::SYS_rt_sigreturn, "the kick's handler"),
    may(
        sys::SYS_restart_syscall,
        "waits that a stop and a continue interrupted",
    ),
    may(sys::SYS_sigaltstack, "the end of a thread"),
    may(sys::SYS_exit, "the end of a thread"),
    may(sys::SYS_exit_group, "the end of the process"),
];

const USERFAULTFD_IOCTLS: &[When] = &[When::Bits(1, 0xFF00, 0xAA00)];
/// `UFFDIO_WAKE`
const USERFAULTFD_WAKE: &[When] = &[When::Is(1, 0x8010_AA02)];
/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: &[When] = &[When::Is(1, 0xC060_6610)];

/// Work on guest pages, for the threads that may take, give back, release, compress or swap them.
const PAGES: &[Rule] = &[
    only(
        sys::SYS_ioctl,
        USERFAULTFD_IOCTLS,
        "take, give back, fill, protect, wake",
    ),
    only(sys::SYS_ioctl, PAGEMAP_SCAN, "written and broken pages"),
    may(
        sys::SYS_munlock,
        "spare pages that broken pages come home to, where all memory is locked",
    ),
    may(sys::SYS_msync, "whether an address is mapped"),
    may(
        sys::SYS_pread64,
        "the swap file; the list of mappings; the base image",
    ),
    may(sys::SYS_pwrite64, "the swap file"),
    may(sys::SYS_fallocate, "the swap file grows and gives space back"),
    may(
        sys::SYS_ftruncate,
        "the swap file where it cannot be allocated; the pool's descriptor is not for writing",
    ),
    may(sys::SYS_statx, "the pool's size"),
    may(sys::SYS_fstat, "the pool's size"),
];

/// Talk with the manager. Device threads do when they say which pages are rings, or give references back.
const MANAGER: &[Rule] = &[
    may(sys::SYS_sendto, "reports, requests about pages"),
    may(sys::SYS_recvfrom, "orders, answers"),
];

/// The way to the manager, for the two threads that find it again after it was away. With these a process that its guest
/// has taken over reaches any socket of its user: see [`is_welcome`](super::is_welcome).
const SEARCH: &[Rule] = &[
    only(
        sys::SYS_socket,
        &[When::Is(0, sys::AF_UNIX as u64)],
        "the way to the manager",
    ),
    may(sys::SYS_connect, "the way to the manager"),
    only(sys::SYS_setsockopt, TIMEOUTS, "patience with the manager"),
    only(sys::SYS_setsockopt, SEND_TIMEOUT, "patience with the manager"),
];

/// What comes with a manager that was found.
const POOL: &[Rule] = &[may(sys::SYS_recvmsg, "the pool's descriptor")];

const VOICE: &[Rule] = &[
    only(
        sys::SYS_fcntl,
        &[When::Is(1, sys::F_DUPFD_CLOEXEC as u64)],
        "a second handle of the connection, for the limit controller",
    ),
    may(sys::SYS_fstatfs, "what still fits into the swap folder"),
];

const TIMEOUTS: &[When] = &[
    When::Is(1, sys::SOL_SOCKET as u64),
    When::Is(2, sys::SO_RCVTIMEO as u64),
];
const SEND_TIMEOUT: &[When] = &[
    When::Is(1, sys::SOL_SOCKET as u64),
    When::Is(2, sys::SO_SNDTIMEO as u64),
];
const PEER: &[When] = &[
    When::Is(1, sys::SOL_SOCKET as u64),
    When::Is(2, sys::SO_PEERCRED as u64),
];
/// The limit that carries the mark, looked at and not changed.
const LOOK_AT_MARK: &[When] = &[
    When::Is(1, sys::RLIMIT_MSGQUEUE as u64),
    When::Bits(2, u64::MAX, 0),
];

/// A socket that clients come to.
const CLIENTS: &[Rule] = &[
    may(sys::SYS_accept4, "clients of the control and the agent socket"),
    only(sys::SYS_getsockopt, PEER, "which process a client is"),
    only(
        sys::SYS_prlimit64,
        LOOK_AT_MARK,
        "whether a client is a guest's process",
    ),
    may(sys::SYS_sendto, "replies"),
    may(sys::SYS_recvfrom, "requests"),
    only(
        sys::SYS_setsockopt,
        SEND_TIMEOUT,
        "a client that does not read its reply",
    ),
    only(
        sys::SYS_ioctl,
        &[When::Is(1, sys::FIONBIO)],
        "clients of the agent",
    ),
];

/// The balloon's timers.
const TIMERS: &[Rule] = &[may(sys::SYS_timerfd_settime, "the balloon's next step and poll")];

/// KVM_RUN, KVM_GET_REGS, KVM_GET_SREGS.
const VCPU: &[Rule] = &[
    only(sys::SYS_ioctl, &[When::Is(1, 0xAE80)], "KVM_RUN"),
    only(
        sys::SYS_ioctl,
        &[When::Is(1, 0x8090_AE81)],
        "KVM_GET_REGS, when paused or crashed",
    ),
    only(
        sys::SYS_ioctl,
        &[When::Is(1, 0x8138_AE83)],
        "KVM_GET_SREGS, when paused or crashed",
    ),
];

const DISK: &[Rule] = &[
    may(sys::SYS_pread64, "the image and its overlay"),
    may(sys::SYS_pwrite64, "the image and its overlay"),
    may(sys::SYS_fdatasync, "a flush by the guest"),
];

/// Threads are started with clone3 and its flags in memory, where no filter sees them; told that there is none, the C
/// library uses clone.
const THREADS: &[Rule] = &[
    refuse(
        sys::SYS_clone3,
        sys::ENOSYS,
        "thread::spawn, which then uses clone",
    ),
    only(
        sys::SYS_clone,
        &[When::Bits(0, PROCESS_FLAGS, THREAD_FLAGS)],
        "a thread for a client",
    ),
    may(sys::SYS_set_robust_list, "a new thread"),
    may(sys::SYS_rseq, "a new thread"),
    only(
        sys::SYS_prctl,
        &[When::Is(0, sys::PR_SET_NAME as u64)],
        "a new thread's name",
    ),
];

const THREAD_FLAGS: u64 = (sys::CLONE_THREAD | sys::CLONE_VM | sys::CLONE_SIGHAND | sys::CLONE_FILES) as u64;
/// What makes a thread, and what must not be among it: namespaces, a parent's death, a vfork.
const PROCESS_FLAGS: u64 = THREAD_FLAGS
    | (sys::CLONE_NEWNS
        | sys::CLONE_NEWCGROUP
        | sys::CLONE_NEWUTS
        | sys::CLONE_NEWIPC
        | sys::CLONE_NEWUSER
        | sys::CLONE_NEWPID
        | sys::CLONE_NEWNET
        | sys::CLONE_VFORK
        | sys::CLONE_PTRACE) as u64;

const MAIN: &[Rule] = &[
    may(sys::SYS_pread64, "/proc/self/smaps, for statistics"),
    may(sys::SYS_lseek, "/proc/self/smaps, for statistics"),
    may(sys::SYS_statx, "/proc/self/smaps, for statistics"),
    only(
        sys::SYS_ioctl,
        USERFAULTFD_WAKE,
        "an inventory lets go of a compressed or swapped page, for which somebody may wait by then",
    ),
];

/// Of a VMM that was started by hand.
const REMOVE_SOCKETS: &[Rule] = &[may(sys::SYS_unlink, "SocketFile, when the guest has ended")];

const SERIAL: &[Rule] = &[
    may(
        sys::SYS_pread64,
        "the newest of the console's file, as the oldest goes",
    ),
    may(sys::SYS_pwrite64, "the console's file"),
    may(sys::SYS_ftruncate, "the console's file, as the oldest goes"),
];

const STREAM: &[Rule] = &[may(sys::SYS_rt_sigtimedwait, "SIGINT, SIGTERM, SIGHUP")];

/// The tables of each role.
pub(super) const fn of(role: Role) -> &'static [&'static [Rule]] {
    match role {
        Role::Main => &[ANYWHERE, MAIN, TIMERS],
        Role::Vcpu => &[ANYWHERE, VCPU],
        Role::Disk => &[ANYWHERE, PAGES, MANAGER, DISK],
        Role::Net | Role::Entropy => &[ANYWHERE, PAGES, MANAGER],
        Role::Balloon => &[ANYWHERE, PAGES, MANAGER, TIMERS],
        Role::Console => &[ANYWHERE, PAGES, MANAGER, CLIENTS],
        Role::FaultHandler | Role::SwapIns => &[ANYWHERE, PAGES],
        Role::Scanner => &[ANYWHERE, PAGES, MANAGER, SEARCH, POOL],
        Role::LimitController => &[ANYWHERE, PAGES, MANAGER],
        Role::ManagerClient => &[ANYWHERE, PAGES, MANAGER, SEARCH, VOICE, TIMERS],
        Role::Control => &[ANYWHERE, CLIENTS, THREADS],
        Role::Serial => &[ANYWHERE, SERIAL],
        Role::Stream => &[ANYWHERE, STREAM],
    }
}

/// What the main thread has besides its own, where sockets are its to remove.
pub(super) const SOCKETS: &[Rule] = REMOVE_SOCKETS;
