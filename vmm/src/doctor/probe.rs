//! What this machine's KVM can really run, found out by running it: two tiny guests of a few instructions each.
//!
//! A KVM may accept every ioctl and still be unable to run a kernel: one that emulates in software stops at the first
//! privileged instruction it does not know. So the first guest executes in ring 0 what every stock kernel executes
//! while it boots, and reports after each step; where it does not get through, the second one tries plain ring 3.

// UNSAFETY: handing a memory slot to KVM is an unsafe ioctl.
#![allow(unsafe_code)]

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// Which guests this machine can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machine {
    /// Stock kernels: KVM on hardware, or nested in an emulator with nested paging.
    Kernels,
    /// Only flat test guests in ring 3: KVM emulates privileged code in software and does not know all of it.
    Ring3 {
        /// The first step of a kernel's boot that failed, and how.
        stopped: String,
    },
    /// None.
    None(NoKvm),
}

/// Why a machine can run no guest at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoKvm {
    /// There is no /dev/kvm.
    Missing,
    /// It is there, but this user may not open it.
    NotPermitted,
    /// It is there and fails; with what it said.
    Broken(String),
}

impl Machine {
    /// Finds out. Takes a few milliseconds, some seconds where KVM hangs, at most a minute; leaves nothing behind.
    pub fn probe() -> Self {
        if let Err(no) = open() {
            return Self::None(no);
        }
        let kernel = match run_within(DEADLINE, ring0) {
            Ok(None) => return Self::Kernels,
            Ok(Some(stopped)) => stopped,
            Err(error) => error,
        };
        match run_within(DEADLINE, ring3) {
            Ok(None) => Self::Ring3 { stopped: kernel },
            Ok(Some(stopped)) => Self::None(NoKvm::Broken(format!("{kernel}; {stopped}"))),
            Err(error) => Self::None(NoKvm::Broken(error)),
        }
    }

    /// Whether stock kernels run here.
    pub fn runs_kernels(&self) -> bool {
        matches!(self, Self::Kernels)
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kernels => write!(f, "stock kernels run here"),
            Self::Ring3 { stopped } => write!(
                f,
                "this KVM runs ring-3 test guests but no stock kernel ({stopped}): real guests need the nested host \
                 (`cargo xtask nested -- COMMAND`) or a machine with hardware virtualization"
            ),
            Self::None(NoKvm::Missing) => write!(
                f,
                "there is no /dev/kvm: load kvm_intel or kvm_amd (`modprobe kvm_amd`), enable virtualization in the \
                 firmware, or in a virtual machine ask for nested virtualization; without it use the nested host"
            ),
            Self::None(NoKvm::NotPermitted) => write!(
                f,
                "no permission to open /dev/kvm: add yourself to the group that owns it (`usermod -aG kvm $USER`, then \
                 log in again) or run as root"
            ),
            Self::None(NoKvm::Broken(why)) => write!(f, "/dev/kvm is there but runs nothing: {why}"),
        }
    }
}

/// A guest that has not finished after it ran for so long never will. On a busy machine that takes a while.
const DEADLINE: Duration = Duration::from_secs(3);

/// How long a guest is given that hardly runs.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a guest past its deadline is kicked: one kick is lost if it comes just before KVM_RUN.
const KICK: Duration = Duration::from_millis(20);

/// The port on which a guest reports that step AL is done.
const PORT: u16 = 0x80;

/// Guest memory: one 2 MiB page, identity mapped.
const MEMORY: usize = 2 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const IDTR: u64 = 0x6100;
const TSS: u64 = 0x8000;
const STACK_TOP: u64 = 0xf000;
const CODE: u64 = 0x10000;
const BREAKPOINT: u64 = 0x1f000;

/// Something every kernel does while it boots.
struct Step {
    name: &'static str,
    needs: Needs,
    /// Position-independent; falls out at its end when all went well, halts otherwise.
    code: &'static [u8],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Cx16,
    Xsave,
    Bmi2,
}

const STEPS: &[Step] = &[
    Step {
        name: "wrmsr, rdmsr, swapgs, mov to cr3, invlpg",
        needs: Needs::Nothing,
        code: &[
            0xb9, 0x02, 0x01, 0x00, 0xc0, // mov ecx, MSR_KERNEL_GS_BASE
            0xb8, 0x45, 0x23, 0x01, 0x00, // mov eax, 0x12345
            0x31, 0xd2, // xor edx, edx
            0x0f, 0x30, // wrmsr
            0x0f, 0x32, // rdmsr
            0x3d, 0x45, 0x23, 0x01, 0x00, // cmp eax, 0x12345
            0x74, 0x01, 0xf4, // je over; hlt
            0x0f, 0x01, 0xf8, // swapgs
            0x0f, 0x20, 0xd8, // mov rax, cr3
            0x0f, 0x22, 0xd8, // mov cr3, rax
            0x0f, 0x01, 0x38, // invlpg [rax]
        ],
    },
    Step {
        name: "int3 through an interrupt table, iretq",
        needs: Needs::Nothing,
        code: &[
            0xbf, 0x00, 0x61, 0x00, 0x00, // mov edi, IDTR
            0x0f, 0x01, 0x1f, // lidt [rdi]
            0x31, 0xf6, // xor esi, esi
            0xcc, // int3
            0x83, 0xfe, 0x33, // cmp esi, 0x33, which the handler leaves there
            0x74, 0x01, 0xf4, // je over; hlt
        ],
    },
    Step {
        name: "xsetbv, xsave, xrstor",
        needs: Needs::Xsave,
        code: &[
            0x31, 0xc9, // xor ecx, ecx
            0x31, 0xd2, // xor edx, edx
            0xb8, 0x03, 0x00, 0x00, 0x00, // mov eax, x87 and SSE
            0x0f, 0x01, 0xd1, // xsetbv
            0xbf, 0x00, 0x70, 0x00, 0x00, // mov edi, 0x7000
            0x0f, 0xae, 0x27, // xsave [rdi]
            0x0f, 0xae, 0x2f, // xrstor [rdi]
        ],
    },
    Step {
        name: "bmi2 (shlx)",
        needs: Needs::Bmi2,
        code: &[
            0xb9, 0x04, 0x00, 0x00, 0x00, // mov ecx, 4
            0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
            0xc4, 0xe2, 0xf1, 0xf7, 0xc0, // shlx rax, rax, rcx
            0x83, 0xf8, 0x10, // cmp eax, 16
            0x74, 0x01, 0xf4, // je over; hlt
        ],
    },
    Step {
        name: "lock cmpxchg16b",
        needs: Needs::Cx16,
        code: &[
            0xbf, 0x00, 0x60, 0x00, 0x00, // mov edi, 0x6000, where 16 zero bytes lie
            0x31, 0xc0, // xor eax, eax
            0x31, 0xd2, // xor edx, edx
            0xbb, 0x01, 0x00, 0x00, 0x00, // mov ebx, 1
            0xb9, 0x02, 0x00, 0x00, 0x00, // mov ecx, 2
            0xf0, 0x48, 0x0f, 0xc7, 0x0f, // lock cmpxchg16b [rdi]
            0x74, 0x01, 0xf4, // je over; hlt
            0x48, 0x83, 0x7f, 0x08, 0x02, // cmp qword [rdi+8], 2
            0x74, 0x01, 0xf4, // je over; hlt
        ],
    },
];

/// The handler of int3: mov esi, 0x33; iretq.
const HANDLER: &[u8] = &[0xbe, 0x33, 0x00, 0x00, 0x00, 0x48, 0xcf];

/// A flat guest in ring 3 reports at once.
const RING3: &[Step] = &[Step {
    name: "out in ring 3",
    needs: Needs::Nothing,
    code: &[],
}];

fn open() -> Result<(), NoKvm> {
    match Kvm::new() {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.errno() {
            libc::ENOENT | libc::ENXIO | libc::ENODEV => NoKvm::Missing,
            libc::EACCES | libc::EPERM => NoKvm::NotPermitted,
            _ => NoKvm::Broken(format!("opening it failed: {error}")),
        }),
    }
}

/// Runs `guest` on a thread of its own; `Ok(None)` when it got through, else where it stopped.
fn run_within(
    deadline: Duration,
    guest: fn(&AtomicBool) -> Result<Option<String>, kvm_ioctls::Error>,
) -> Result<Option<String>, String> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), ignore).map_err(|error| format!("cannot catch a signal: {error}"))?;
    let over = Arc::new(AtomicBool::new(false));
    let (tell, told) = channel();
    let thread = {
        let over = Arc::clone(&over);
        let thread = std::thread::Builder::new().name("probe".into());
        thread.spawn(move || {
            let _ = tell.send(guest(&over));
        })
    };
    let thread = thread.map_err(|error| {
        let reason = levy_protocol::not_started(error);
        format!("the probing thread cannot be started: {reason}")
    })?;
    let began = Instant::now();
    let is_over = || time_of(&thread) >= deadline || began.elapsed() >= PATIENCE;
    let answer = loop {
        match told.recv_timeout(KICK) {
            Ok(answer) => break answer.map_err(|error| format!("setting up a guest failed: {error}")),
            Err(RecvTimeoutError::Disconnected) => break Err("the probing thread died".to_owned()),
            Err(RecvTimeoutError::Timeout) if is_over() => {
                over.store(true, Ordering::Relaxed);
                let _ = thread.kill(SIGRTMIN());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    let _ = thread.join();
    answer
}

/// CPU time that a thread which was not joined has taken; none once it has ended.
fn time_of(thread: &JoinHandle<()>) -> Duration {
    let (mut clock, mut time) = (
        0,
        libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
    );
    // SAFETY: the handle keeps the thread's number valid, and both results are written to variables of their types.
    let failed = unsafe {
        libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) != 0
            || libc::clock_gettime(clock, &raw mut time) != 0
    };
    match failed {
        true => Duration::ZERO,
        false => Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32),
    }
}

fn ring0(over: &AtomicBool) -> Result<Option<String>, kvm_ioctls::Error> {
    let kvm = Kvm::new()?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let steps: Vec<_> = STEPS.iter().filter(|step| offered(&cpuid, step.needs)).collect();
    let xsave = offered(&cpuid, Needs::Xsave);
    run(&kvm, &cpuid, &steps, Ring::Kernel { xsave }, over)
}

fn ring3(over: &AtomicBool) -> Result<Option<String>, kvm_ioctls::Error> {
    let kvm = Kvm::new()?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let steps: Vec<_> = RING3.iter().collect();
    run(&kvm, &cpuid, &steps, Ring::User, over)
}

/// Whether KVM tells guests that they have it; what it does not offer no kernel uses.
fn offered(cpuid: &CpuId, needs: Needs) -> bool {
    let entry = |leaf| {
        cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == leaf && entry.index == 0)
    };
    let bit = |value: Option<u32>, bit: u32| value.is_some_and(|value| value & (1 << bit) != 0);
    match needs {
        Needs::Nothing => true,
        Needs::Cx16 => bit(entry(1).map(|entry| entry.ecx), 13),
        Needs::Xsave => bit(entry(1).map(|entry| entry.ecx), 26),
        Needs::Bmi2 => bit(entry(7).map(|entry| entry.ebx), 8),
    }
}

#[derive(Clone, Copy)]
enum Ring {
    Kernel { xsave: bool },
    User,
}

fn run(
    kvm: &Kvm,
    cpuid: &CpuId,
    steps: &[&Step],
    ring: Ring,
    over: &AtomicBool,
) -> Result<Option<String>, kvm_ioctls::Error> {
    let broken = || kvm_ioctls::Error::new(libc::ENOMEM);
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).map_err(|_| broken())?;
    load(&memory, steps).map_err(|_| broken())?;
    let vm = kvm.create_vm()?;
    let address = memory.get_host_address(GuestAddress(0)).map_err(|_| broken())?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: address as u64,
    };
    // SAFETY: the mapping is MEMORY bytes long and outlives the VM: `memory` is dropped after `vm` and `vcpu`, which
    // are declared later.
    unsafe { vm.set_user_memory_region(region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(cpuid)?;
    set_registers(&vcpu, ring)?;
    Ok(watch(&mut vcpu, steps, over))
}

/// Code, page tables, descriptor tables.
fn load(memory: &GuestMemoryMmap, steps: &[&Step]) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE_USER: u64 = 7;
    const HUGE: u64 = 0x80;
    let write = |address: u64, bytes: &[u8]| memory.write_slice(bytes, GuestAddress(address));
    let write_words = |address: u64, words: &[u64]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write_slice(&bytes, GuestAddress(address))
    };
    write_words(PML4, &[PDPT | PRESENT_WRITABLE_USER])?;
    write_words(PDPT, &[PD | PRESENT_WRITABLE_USER])?;
    write_words(PD, &[PRESENT_WRITABLE_USER | HUGE])?;
    // Null, 64-bit code, data: what iretq loads from.
    write_words(GDT, &[0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff])?;
    // Gate 3: present, interrupt gate, selector 8.
    let gate = (BREAKPOINT & 0xffff) | 0x8 << 16 | 0x8e00 << 32 | (BREAKPOINT >> 16 & 0xffff) << 48;
    write_words(IDT + 3 * 16, &[gate, BREAKPOINT >> 32])?;
    write(IDTR, &(4 * 16 - 1u16).to_le_bytes())?;
    write_words(IDTR + 2, &[IDT])?;
    write(BREAKPOINT, HANDLER)?;
    let mut code = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        code.extend(step.code);
        // mov al, index; out PORT, al
        code.extend([0xb0, index as u8, 0xe6, PORT as u8]);
    }
    code.push(0xf4);
    write(CODE, &code)
}

fn set_registers(vcpu: &VcpuFd, ring: Ring) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    set_mode(&mut sregs, ring);
    vcpu.set_sregs(&sregs)?;
    let rflags = match ring {
        Ring::Kernel { .. } => 0x2,
        // IOPL 3: ring 3 may use ports.
        Ring::User => 0x3002,
    };
    vcpu.set_regs(&kvm_regs {
        rip: CODE,
        rsp: STACK_TOP,
        rflags,
        ..Default::default()
    })
}

fn set_mode(sregs: &mut kvm_sregs, ring: Ring) {
    let (dpl, rpl) = match ring {
        Ring::Kernel { .. } => (0, 0),
        Ring::User => (3, 3),
    };
    let code = kvm_segment {
        selector: 0x8 | rpl,
        limit: u32::MAX,
        type_: 11,
        present: 1,
        dpl,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: 0x10 | rpl,
        type_: 3,
        l: 0,
        db: 1,
        ..code
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        base: TSS,
        limit: 0x67,
        selector: 0x18,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 3 * 8 - 1);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    // Protected mode, paging, numeric errors; long mode; PAE, SSE and, for xsetbv, OSXSAVE.
    sregs.cr0 = 0x8005_0033;
    sregs.cr3 = PML4;
    sregs.cr4 = 0x620;
    if let Ring::Kernel { xsave: true } = ring {
        sregs.cr4 |= 1 << 18;
    }
    sregs.efer = 0xd01;
}

/// Runs until the last step has reported; `Some` says where it stopped before that.
fn watch(vcpu: &mut VcpuFd, steps: &[&Step], over: &AtomicBool) -> Option<String> {
    let mut done = 0;
    while done < steps.len() {
        let step = steps[done].name;
        if over.load(Ordering::Relaxed) {
            return Some(format!(
                "{step}: no end after {} s of its CPU, or {} s in all",
                DEADLINE.as_secs(),
                PATIENCE.as_secs()
            ));
        }
        match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, [index])) if usize::from(*index) == done => done += 1,
            Ok(exit) => {
                let exit = format!("{exit:?}");
                return Some(format!("{step}: {exit}"));
            }
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {}
            Err(error) => return Some(format!("{step}: {error}")),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_fit_between_the_tables() {
        let bytes: usize = STEPS.iter().map(|step| step.code.len() + 4).sum();
        assert!(CODE + bytes as u64 + 1 < BREAKPOINT);
        assert!(BREAKPOINT + (HANDLER.len() as u64) < MEMORY as u64);
    }

    #[test]
    fn every_answer_names_a_cure_or_none_is_needed() {
        let text = Machine::Ring3 {
            stopped: "int3: Hlt".into(),
        }
        .to_string();
        assert!(
            text.contains("int3: Hlt") && text.contains("cargo xtask nested"),
            "{text}"
        );
        assert!(Machine::None(NoKvm::Missing).to_string().contains("modprobe"));
        assert!(Machine::None(NoKvm::NotPermitted).to_string().contains("usermod"));
    }

    #[test]
    fn a_guest_that_hardly_runs_is_not_taken_for_one_that_hangs() {
        let waits = |over: &AtomicBool| {
            std::thread::sleep(10 * KICK);
            Ok(over.load(Ordering::Relaxed).then(|| "cut off".to_owned()))
        };
        assert_eq!(run_within(5 * KICK, waits), Ok(None));
        let hangs = |over: &AtomicBool| {
            while !over.load(Ordering::Relaxed) {}
            Ok(Some("cut off".to_owned()))
        };
        assert_eq!(run_within(5 * KICK, hangs), Ok(Some("cut off".to_owned())));
    }

    #[test]
    fn the_probe_agrees_with_itself() {
        // What the machine can do is not known here, but it does not change.
        assert_eq!(Machine::probe(), Machine::probe());
    }
}
