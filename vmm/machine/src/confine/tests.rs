//! What the filters forbid and allow, tried in child processes; and what the pool needs them for.
#![allow(unsafe_code)]
// UNSAFETY: system calls by number, which is what filters are about. None of them gets a pointer that the kernel would
// write through.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::Arc;

use page_share::port::Port;
use page_share::{AnonymousMemory, Domain, Gfn, LocalManager, Options, PageRun, Region};
use vm_memory::{Bytes, GuestAddress};

use super::rules::{self, When};
use super::*;
use crate::memory::GuestRam;
use crate::vm::SerialLog;
use levy_member::{Inventory, Key, ManagedMemory};

/// Tells a child of the test process what to do: `MODE ROLE DEED`.
const ORDER: &str = "LEVY_CONFINE_TEST";
/// What the main thread does when it is asked what is in a guest's pages.
const INVENTORY: &str = "take an inventory";
/// What a scanner does with shared pages that are written to, until they are at home again.
const HOMECOMING: &str = "bring pages home";
/// What keeps a console's file bounded.
const CONSOLE_LOG: &str = "keep a console's newest";
/// How a child ends whose deed came back, allowed or refused.
const SURVIVED: &str = "came back with ";

/// System calls that no thread of a VMM may make, whatever their arguments are.
const NEVER: &[(&str, i64)] = &[
    ("open", libc::SYS_open),
    ("openat", libc::SYS_openat),
    ("openat2", libc::SYS_openat2),
    ("creat", libc::SYS_creat),
    ("open_by_handle_at", libc::SYS_open_by_handle_at),
    ("memfd_create", libc::SYS_memfd_create),
    ("memfd_secret", libc::SYS_memfd_secret),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("mknodat", libc::SYS_mknodat),
    ("linkat", libc::SYS_linkat),
    ("symlinkat", libc::SYS_symlinkat),
    ("rename", libc::SYS_rename),
    ("renameat2", libc::SYS_renameat2),
    ("unlinkat", libc::SYS_unlinkat),
    ("fchmod", libc::SYS_fchmod),
    ("fchmodat", libc::SYS_fchmodat),
    ("fchmodat2", libc::SYS_fchmodat2),
    ("chmod", libc::SYS_chmod),
    ("fchown", libc::SYS_fchown),
    ("execve", libc::SYS_execve),
    ("execveat", libc::SYS_execveat),
    ("fork", libc::SYS_fork),
    ("vfork", libc::SYS_vfork),
    ("kill", libc::SYS_kill),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    ("ptrace", libc::SYS_ptrace),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("process_madvise", libc::SYS_process_madvise),
    ("mount", libc::SYS_mount),
    ("pivot_root", libc::SYS_pivot_root),
    ("chroot", libc::SYS_chroot),
    ("unshare", libc::SYS_unshare),
    ("setns", libc::SYS_setns),
    ("setuid", libc::SYS_setuid),
    ("setrlimit", libc::SYS_setrlimit),
    ("bpf", libc::SYS_bpf),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("io_setup", libc::SYS_io_setup),
    ("init_module", libc::SYS_init_module),
    ("keyctl", libc::SYS_keyctl),
    ("dup2", libc::SYS_dup2),
    ("bind", libc::SYS_bind),
    ("listen", libc::SYS_listen),
    ("seccomp", libc::SYS_seccomp),
    ("rt_sigaction", libc::SYS_rt_sigaction),
    ("mlock", libc::SYS_mlock),
    ("vmsplice", libc::SYS_vmsplice),
];

/// Calls that are forbidden for some arguments.
const SOMETIMES: &[(&str, i64, [u64; 3])] = &[
    ("clone a process", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0]),
    ("map code", libc::SYS_mmap, [0, 4096, libc::PROT_EXEC as u64]),
    ("make code", libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC as u64]),
    ("add seals", libc::SYS_fcntl, [0, libc::F_ADD_SEALS as u64, 1]),
    ("speak IPv4", libc::SYS_socket, [libc::AF_INET as u64, 1, 0]),
    ("speak netlink", libc::SYS_socket, [libc::AF_NETLINK as u64, 3, 0]),
    (
        "change the mark",
        libc::SYS_prlimit64,
        [0, libc::RLIMIT_MSGQUEUE as u64, 8],
    ),
    (
        "look at another limit",
        libc::SYS_prlimit64,
        [0, libc::RLIMIT_NOFILE as u64, 0],
    ),
    ("signal process 1", libc::SYS_tgkill, [1, 1, 0]),
    ("create a VM", libc::SYS_ioctl, [0, 0xAE01, 0]),
    ("steal a terminal's input", libc::SYS_ioctl, [0, libc::TIOCSTI, 0]),
    (
        "become dumpable",
        libc::SYS_prctl,
        [libc::PR_SET_DUMPABLE as u64, 1, 0],
    ),
];

/// The scanner's whole work on shared pages, for which it needs calls that nothing else makes.
#[test]
fn a_scanner_brings_pages_home() {
    let output = order(Mode::On, Role::Scanner, HOMECOMING);
    assert_eq!(survived(&output), Some(0), "{output:?}");
}

fn order(mode: Mode, role: Role, deed: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "confine::tests::in_a_child", "--nocapture"])
        .env(ORDER, format!("{mode} {} {deed}", role.name()))
        // A VMM settles this in `begin`, before it has threads; a test runs on one that has an arena already.
        .env("MALLOC_ARENA_MAX", "1")
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap()
}

/// Whether the deed ended the child by SIGSYS, with a message that names the thread.
fn is_forbidden(role: Role, deed: &str) -> bool {
    let output = order(Mode::On, role, deed);
    let text = String::from_utf8_lossy(&output.stderr);
    let killed = output.status.signal() == Some(libc::SIGSYS);
    let named = text.contains(&format!("({}) made a system call", role.name()));
    // The C library starts threads with all signals blocked: then there is no message.
    let silent = deed == "start a thread";
    assert!(killed == named || silent, "{role:?} {deed}: {output:?}");
    killed
}

/// Not a test of its own: what children do. Without an order it has nothing to do.
#[test]
fn in_a_child() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let (mode, rest) = order.split_once(' ').unwrap();
    let (role, deed) = rest.split_once(' ').unwrap();
    let role = Role::ALL.into_iter().find(|r| r.name() == role).unwrap();
    // An engine's threads confine themselves; these are not to.
    let kept = (deed == INVENTORY).then(Kept::new);
    let broken = (deed == HOMECOMING).then(Broken::new);
    let log = (deed == CONSOLE_LOG).then(|| SerialLog::new(tempfile::tempfile().unwrap()).unwrap());
    begin(mode.parse().unwrap(), Sockets::Theirs).unwrap();
    let manager = LocalManager::new(Domain::new(64).unwrap());
    let pool = Arc::clone(&manager.attach(64).unwrap().session().pool);
    let smaps = File::open("/proc/self/smaps").unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    if deed == "serve a guest's process" {
        levy_protocol::mark::put_on_this_process().unwrap();
    }
    let deed = deed.to_owned();
    let body = move || {
        enter(role);
        let result = match (&kept, &broken) {
            (Some(kept), _) => kept.inventory(),
            (_, Some(broken)) => broken.come_home(),
            _ if log.is_some() => keep_newest(log),
            _ => do_deed(&deed, &pool, &smaps, &near),
        };
        println!("{SURVIVED}{result}");
    };
    std::thread::spawn(body).join().unwrap();
}

fn do_deed(deed: &str, pool: &File, mut smaps: &File, near: &UnixStream) -> i64 {
    if let Some((_, call)) = NEVER.iter().find(|(name, _)| *name == deed) {
        return call_by_number(*call, [0; 3]);
    }
    if let Some((_, call, arguments)) = SOMETIMES.iter().find(|(name, ..)| *name == deed) {
        return call_by_number(*call, *arguments);
    }
    let fd = pool.as_raw_fd();
    let (read_write, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    match deed {
        "reopen the pool" => {
            let file = File::options().write(true).open(format!("/proc/self/fd/{fd}"));
            file.and_then(|file| file.write_at(b"x", 0)).map_or(-1, |_| 0)
        }
        "change the pool's mode" => call_by_number(libc::SYS_fchmod, [fd as u64, 0o600, 0]),
        "cut the pool" => call_by_number(libc::SYS_ftruncate, [fd as u64, 0, 0]),
        "punch the pool" => call_by_number(libc::SYS_fallocate, [fd as u64, 3, 0]),
        "seal the pool" => call_by_number(
            libc::SYS_fcntl,
            [fd as u64, libc::F_ADD_SEALS as u64, libc::F_SEAL_WRITE as u64],
        ),
        "map the pool for writing" => {
            // SAFETY: a new mapping wherever the kernel puts it; it is not touched.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, read_write, shared, fd, 0) };
            if at == libc::MAP_FAILED { -1 } else { 0 }
        }
        // The process at the other end of this socket is this one.
        "serve a client" | "serve a guest's process" => i64::from(is_welcome(near)),
        "connect" => call_by_number(libc::SYS_connect, [u64::MAX, 0, 0]),
        "live" => live(near),
        "read smaps" => {
            smaps.rewind().unwrap();
            smaps.read_to_string(&mut String::new()).map_or(-1, |_| 0)
        }
        "start a thread" => std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("client".into());
            let started = thread.spawn_scoped(scope, || live(near));
            started.map_or(-1, |thread| thread.join().unwrap())
        }),
        "touch a page that is lost" => touch(libc::PROT_READ, fd, 1 << 30),
        "touch what may not be touched" => touch(libc::PROT_NONE, fd, 0),
        "free a block twice" => free_twice(),
        "panic" => panic!("as it was told to"),
        "call a manager" => UnixStream::connect("/nonexistent").map_or(-1, |_| 0),
        other => panic!("no such deed: {other}"),
    }
}

/// Writes far more to a console's file than it keeps.
fn keep_newest(log: Option<SerialLog>) -> i64 {
    let line = [b'x'; 1024];
    let written = log.map(|mut log| (0..5000).try_for_each(|_| log.write_all(&line)));
    written.map_or(-1, |written| written.map_or(-2, |()| 0))
}

/// Reads a byte at `offset` of `file`, mapped like this.
fn touch(protection: libc::c_int, file: i32, offset: i64) -> i64 {
    let any = std::ptr::null_mut();
    // SAFETY: a new mapping wherever the kernel puts it.
    let at = unsafe { libc::mmap(any, 4096, protection, libc::MAP_PRIVATE, file, offset) };
    assert_ne!(at, libc::MAP_FAILED);
    // SAFETY: it is not to come back from this.
    i64::from(unsafe { at.cast::<u8>().read_volatile() })
}

/// The C library finds the heap broken, says so, and aborts.
fn free_twice() -> i64 {
    let block = std::hint::black_box(Box::into_raw(Box::new([0_u8; 64])));
    // SAFETY: it is not to come back from the second one.
    unsafe {
        drop(Box::from_raw(block));
        drop(Box::from_raw(std::hint::black_box(block)));
    }
    0
}

/// Guest memory of which some is compressed and some is swapped.
struct Kept {
    engine: ManagedMemory,
    _ram: Arc<GuestRam>,
    _dir: tempfile::TempDir,
}

impl Kept {
    fn new() -> Self {
        let ram = Arc::new(GuestRam::new(2 << 20).unwrap());
        ram.view()
            .write_slice(&vec![7; 64 * 4096], GuestAddress(0))
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let engine = ManagedMemory::start_with(&ram, Some(dir.path().to_owned()), member_threads()).unwrap();
        engine.region().split_blocks(u32::MAX);
        let run = |first| PageRun {
            first: Gfn::new(first),
            count: 32,
        };
        assert_eq!(engine.region().compress(run(0)), 32);
        assert_eq!(engine.region().swap_out(run(32)).unwrap(), 32);
        Self {
            engine,
            _ram: ram,
            _dir: dir,
        }
    }

    /// 0 when it has what is compressed and what is swapped.
    fn inventory(&self) -> i64 {
        let key = Key::parse(&"0123456789abcdef".repeat(4)).unwrap();
        let inventory = Inventory::take(self.engine.region(), &key, 0, 64);
        match inventory.kinds == "C".repeat(32) + &"W".repeat(32) {
            true => 0,
            false => -1,
        }
    }
}

/// Two guests' memory that shares all of its pages, of which one guest has written to some.
struct Broken {
    regions: [Region; 2],
    _memory: [AnonymousMemory; 2],
    _manager: LocalManager,
}

impl Broken {
    const PAGES: u32 = 200;
    const WRITTEN: u32 = 32;

    fn new() -> Self {
        let manager = LocalManager::new(Domain::new(4096).unwrap());
        let memory = [(); 2].map(|()| AnonymousMemory::new(Self::PAGES).unwrap());
        let regions = memory.each_ref().map(|memory| {
            (0..Self::PAGES).for_each(|page| memory.write_page(page, &[page as u8 + 1; 4096]));
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
            let port = manager.attach(region.page_limit()).unwrap();
            region.connect(Box::new(port)).unwrap();
            region
        });
        let shared = || regions.iter().map(|region| region.stats().shared).min();
        for _ in 0..100 {
            regions.iter().for_each(Region::scan_pass);
        }
        assert!(shared() >= Some(u64::from(Self::WRITTEN)), "{:?}", shared());
        (0..Self::WRITTEN).for_each(|page| memory[0].write_page(page, &[page as u8 ^ 0x80; 4096]));
        Self {
            regions,
            _memory: memory,
            _manager: manager,
        }
    }

    /// 0 when pages that were written to have come home.
    fn come_home(&self) -> i64 {
        for _ in 0..100 {
            self.regions[0].scan_pass();
        }
        match self.regions[0].stats().pages_rehomed {
            0 => -1,
            _ => 0,
        }
    }
}

/// What any thread does: allocate and free much, lock, sleep, look at the clock, write.
fn live(near: &UnixStream) -> i64 {
    let mut blocks: Vec<Vec<u8>> = (8..22).map(|shift| vec![1; 1 << shift]).collect();
    blocks[3].extend_from_slice(&[2; 1 << 20]);
    drop(blocks);
    // Much that is below malloc's threshold for mappings, given back from the top: arenas are made smaller.
    let mut small: Vec<Vec<u8>> = (0..200).map(|_| vec![1; 60_000]).collect();
    while small.pop().is_some() {}
    let (sender, receiver) = std::sync::mpsc::channel();
    sender.send(std::time::Instant::now()).unwrap();
    let _ = receiver.recv().unwrap().elapsed();
    let _ = receiver.recv_timeout(std::time::Duration::from_millis(1));
    std::thread::sleep(std::time::Duration::from_millis(1));
    std::thread::yield_now();
    let _ = std::collections::HashMap::<u8, u8>::new();
    let _ = rustix::io::write(near, b"x");
    0
}

fn call_by_number(call: i64, [a, b, c]: [u64; 3]) -> i64 {
    // SAFETY: no pointers but null ones; where the filters let a call through, the kernel refuses these arguments.
    unsafe { libc::syscall(call, a, b, c, 0, 0, 0) }
}

fn survived(output: &Output) -> Option<i64> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.split_once(SURVIVED))?;
    line.1.trim().parse().ok()
}

#[test]
fn every_table_keeps_away_from_what_no_vmm_needs() {
    for role in Role::ALL {
        for rule in rules::of(role).iter().copied().flatten() {
            assert!(!rule.caller.is_empty());
            let never = NEVER.iter().find(|(_, call)| *call == rule.call);
            assert!(never.is_none(), "{role:?} may {never:?}");
            let careful = [libc::SYS_clone, libc::SYS_ioctl, libc::SYS_fcntl, libc::SYS_prctl];
            if careful.contains(&rule.call) || rule.call == libc::SYS_mmap {
                assert!(!rule.when.is_empty(), "{role:?}: {rule:?}");
            }
            let seals = libc::F_ADD_SEALS as u64;
            let any_seal = rule
                .when
                .iter()
                .any(|when| matches!(when, When::Is(1, value) if *value == seals));
            assert!(rule.call != libc::SYS_fcntl || !any_seal, "{role:?}: {rule:?}");
        }
    }
}

#[test]
fn forbidden_calls_end_the_process_with_a_message() {
    // Each call from one role, and each role with some calls: all pairs would be a thousand processes.
    for (at, (deed, _)) in NEVER.iter().enumerate() {
        let role = Role::ALL[at % Role::ALL.len()];
        assert!(is_forbidden(role, deed), "{role:?} may {deed}");
    }
    for role in Role::ALL {
        for (deed, ..) in SOMETIMES {
            assert!(is_forbidden(role, deed), "{role:?} may {deed}");
        }
    }
}

/// What goes wrong by itself is not taken for a breach.
#[test]
fn crashes_end_the_process_as_crashes() {
    for role in [Role::Vcpu, Role::FaultHandler, Role::Main] {
        for (deed, signal) in [
            ("touch a page that is lost", libc::SIGBUS),
            ("touch what may not be touched", libc::SIGSEGV),
            ("free a block twice", libc::SIGABRT),
        ] {
            let output = order(Mode::On, role, deed);
            assert_eq!(output.status.signal(), Some(signal), "{role:?} {deed} {output:?}");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(!text.contains("confinement"), "{text}");
        }
        // Backtraces are asked for: see `order`.
        let output = order(Mode::On, role, "panic");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("as it was told to"), "{role:?} {text}");
        assert!(!text.contains("confinement"), "{role:?} {text}");
    }
}

#[test]
fn the_message_names_the_call() {
    let output = order(Mode::On, Role::Vcpu, "openat");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("openat (257) with 0x0 0x0 0x0"), "{text}");
    assert_eq!(survived(&order(Mode::Off, Role::Vcpu, "openat")), Some(-1));
}

#[test]
fn every_role_can_live() {
    for role in Role::ALL {
        let output = order(Mode::On, role, "live");
        assert_eq!(survived(&output), Some(0), "{role:?}: {output:?}");
    }
    for (role, deed, result) in [
        (Role::Main, "read smaps", 0),
        (Role::Main, INVENTORY, 0),
        (Role::Control, "start a thread", 0),
        (Role::Serial, CONSOLE_LOG, 0),
        (Role::ManagerClient, "call a manager", -1),
        (Role::Scanner, "call a manager", -1),
    ] {
        let output = order(Mode::On, role, deed);
        assert_eq!(survived(&output), Some(result), "{role:?} {deed}: {output:?}");
    }
    assert!(is_forbidden(Role::Vcpu, "start a thread"));
}

/// Through an open socket a process reaches its neighbours' and its manager's.
#[test]
fn only_the_two_threads_that_look_for_a_manager_can_connect() {
    for role in Role::ALL {
        let searches = matches!(role, Role::ManagerClient | Role::Scanner);
        assert_eq!(is_forbidden(role, "call a manager"), !searches, "{role:?}");
        assert_eq!(is_forbidden(role, "connect"), !searches, "{role:?}");
    }
}

/// A process that is confined is marked for its life, and its clients are looked at by it.
#[test]
fn a_guests_process_is_marked_and_turned_away_by_its_neighbours() {
    for role in [Role::Control, Role::Console] {
        let own = order(Mode::On, role, "serve a client");
        assert_eq!(survived(&own), Some(1), "{role:?}: {own:?}");
        let marked = order(Mode::On, role, "serve a guest's process");
        assert_eq!(survived(&marked), Some(0), "{role:?}: {marked:?}");
    }
}

/// A process that has the pool's read-only descriptor can open it again for writing: the file is its user's. Confined,
/// it cannot, nor get there by any other way.
#[test]
fn the_pool_stays_read_only_for_confined_processes_alone() {
    assert_eq!(
        survived(&order(Mode::Off, Role::Scanner, "change the pool's mode")),
        Some(0)
    );
    if rustix::process::geteuid().is_root() {
        assert_eq!(
            survived(&order(Mode::Off, Role::Scanner, "reopen the pool")),
            Some(0)
        );
    }
    for role in Role::ALL {
        for deed in ["reopen the pool", "change the pool's mode", "seal the pool"] {
            assert!(is_forbidden(role, deed), "{role:?} may {deed}");
        }
        for deed in ["cut the pool", "punch the pool", "map the pool for writing"] {
            let refused = is_forbidden(role, deed) || survived(&order(Mode::On, role, deed)) == Some(-1);
            assert!(refused, "{role:?} may {deed}");
        }
    }
}

#[test]
fn a_thread_that_was_forgotten_is_found() {
    // In this process no thread is confined: the harness's own threads are the forgotten ones.
    assert!(!limits::unconfined().unwrap().is_empty());
}
