//! vCPU threads: running, pausing, and telling why they stopped.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use serde::Serialize;
use vmm_sys_util::signal::Killable;

use super::bus::Bus;
use super::kvm::{Vm, reason};
use super::pause::{ExitFlag, install_kick_handler, kick_signal};
use super::power::PowerRequest;
use crate::boot::{self, EntryState};
use crate::confine::{self, Role};
use crate::event::Event;
use crate::lock::lock;

/// Why vCPUs cannot run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum VcpuError {
    /// KVM refused.
    #[error("KVM refused to {step} vCPU {id}")]
    Kvm {
        id: u8,
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// The host refused a thread or a mapping.
    #[error("the host cannot start a vCPU thread; free memory or raise its limits")]
    Host(#[from] io::Error),
}

/// Where a vCPU was when it paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Registers {
    /// Instruction pointer.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Control register 0: which mode the CPU is in.
    pub cr0: u64,
    /// Control register 3: its page tables.
    pub cr3: u64,
}

impl std::fmt::Display for Registers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rip {:#x} cr0 {:#x}", self.rip, self.cr0)
    }
}

/// All vCPUs of a machine.
pub struct Vcpus {
    control: Arc<Control>,
    threads: Vec<(Arc<ExitFlag>, JoinHandle<()>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Run,
    Pause,
    End,
}

struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// The panic port was written, which is told once.
    panicked: AtomicBool,
}

struct State {
    want: Want,
    /// Registers of each vCPU that is parked at the moment.
    parked: Vec<Option<Registers>>,
    ended: usize,
}

/// How long a vCPU may take to leave the guest: far longer than any exit's handling.
const PARKING_TIME: Duration = Duration::from_secs(5);

impl Vcpus {
    /// Creates `count` vCPUs, paused; the first is at `entry`, the others wait for it to start them.
    ///
    /// # Errors
    /// When KVM or the host refuses.
    pub fn start(
        vm: &Vm,
        count: u8,
        entry: &EntryState,
        bus: &Arc<Bus>,
        events: &Sender<Event>,
    ) -> Result<Self, VcpuError> {
        install_kick_handler()?;
        let supported = vm
            .kvm()
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(refused(0, "list the features of"))?;
        let control = Arc::new(Control {
            state: Mutex::new(State {
                want: Want::Pause,
                parked: vec![None; usize::from(count)],
                ended: 0,
            }),
            changed: Condvar::new(),
            panicked: AtomicBool::new(false),
        });
        // Where one cannot be started, those before it end with this.
        let mut vcpus = Self {
            control,
            threads: Vec::new(),
        };
        for id in 0..count {
            let fd = vm
                .fd()
                .create_vcpu(u64::from(id))
                .map_err(refused(id, "create"))?;
            fd.set_cpuid2(&boot::cpuid_of(id, count, &supported))
                .map_err(refused(id, "set the features of"))?;
            if id == 0 {
                boot::set_entry_state(&fd, entry).map_err(refused(id, "set the registers of"))?;
            }
            let flag = Arc::new(ExitFlag::of(&fd)?);
            let vcpu = Vcpu {
                id: usize::from(id),
                fd,
                flag: Arc::clone(&flag),
                bus: Arc::clone(bus),
                control: Arc::clone(&vcpus.control),
                events: events.clone(),
            };
            let thread = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .stack_size(256 << 10)
                .spawn(move || {
                    confine::enter(Role::Vcpu);
                    vcpu.live();
                })
                .map_err(levy_protocol::not_started)?;
            vcpus.threads.push((flag, thread));
        }
        Ok(vcpus)
    }

    /// Lets all vCPUs run.
    pub fn resume(&self) {
        self.want(Want::Run);
    }

    /// Pauses all vCPUs and waits until each has left the guest. Returns where each was; `None` for one that did not
    /// leave within five seconds, which only a host in trouble causes.
    pub fn pause(&self) -> Vec<Option<Registers>> {
        self.want(Want::Pause);
        let deadline = Instant::now() + PARKING_TIME;
        let mut state = lock(&self.control.state);
        while state.parked.iter().filter(|p| p.is_some()).count() + state.ended < self.threads.len() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                break;
            };
            state = self.wait(state, left);
        }
        state.parked.clone()
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        let waited = self.control.changed.wait_timeout(state, most);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn want(&self, want: Want) {
        lock(&self.control.state).want = want;
        self.control.changed.notify_all();
        if want != Want::Run {
            self.kick();
        }
    }

    fn kick(&self) {
        for (flag, thread) in &self.threads {
            flag.raise();
            // The thread cannot have been joined yet; one that ended ignores the signal.
            let _ = thread.kill(kick_signal());
        }
    }

    /// Ends all vCPU threads.
    pub fn end(&mut self) {
        self.want(Want::End);
        for (_, thread) in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.end();
    }
}

fn refused(id: u8, step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuError {
    move |error| VcpuError::Kvm {
        id,
        step,
        source: reason(error),
    }
}

struct Vcpu {
    id: usize,
    fd: VcpuFd,
    flag: Arc<ExitFlag>,
    bus: Arc<Bus>,
    control: Arc<Control>,
    events: Sender<Event>,
}

/// What a vCPU does after an exit.
enum Next {
    Run,
    Look,
    Stop,
}

impl Vcpu {
    fn live(mut self) {
        while self.may_run() {
            loop {
                match self.run() {
                    Next::Run => {}
                    Next::Look => break,
                    Next::Stop => return self.ended(),
                }
            }
        }
        self.ended();
    }

    fn ended(&self) {
        let mut state = lock(&self.control.state);
        state.ended += 1;
        state.parked[self.id] = None;
        self.control.changed.notify_all();
    }

    /// Waits while the machine is paused; `false` when it ends.
    fn may_run(&mut self) -> bool {
        let mut state = lock(&self.control.state);
        loop {
            match state.want {
                Want::Run => {
                    state.parked[self.id] = None;
                    return true;
                }
                Want::End => return false,
                Want::Pause => {}
            }
            if state.parked[self.id].is_none() {
                drop(state);
                let registers = self.registers();
                state = lock(&self.control.state);
                state.parked[self.id] = Some(registers);
                self.control.changed.notify_all();
                continue;
            }
            state = self
                .control
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn registers(&self) -> Registers {
        let regs = self.fd.get_regs().unwrap_or_default();
        let sregs = self.fd.get_sregs().unwrap_or_default();
        Registers {
            rip: regs.rip,
            rsp: regs.rsp,
            cr0: sregs.cr0,
            cr3: sregs.cr3,
        }
    }

    fn run(&mut self) -> Next {
        let what = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                self.bus.port_in(port, data);
                return Next::Run;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                let asked = self.bus.port_out(port, data);
                return asked.map_or(Next::Run, |asked| self.power(asked));
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.bus.mmio_read(address, data);
                return Next::Run;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.bus.mmio_write(address, data);
                return Next::Run;
            }
            // A triple fault: Linux' last way to reset a PC, and what a kernel that cannot even panic ends in.
            Ok(VcpuExit::Shutdown) => "triple fault".to_owned(),
            Ok(VcpuExit::Hlt | VcpuExit::Intr) => return Next::Look,
            Ok(exit) => format!("{exit:?}"),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                self.flag.lower();
                return Next::Look;
            }
            Err(e) => format!("KVM_RUN failed: {e}"),
        };
        let registers = self.registers();
        self.tell(Event::Crashed(format!("vCPU {}: {what} at {registers}", self.id)));
        Next::Stop
    }

    fn power(&self, asked: PowerRequest) -> Next {
        let event = match asked {
            PowerRequest::Off => Event::PoweredOff,
            PowerRequest::Restart => Event::Restarted,
            PowerRequest::Panicked => {
                if !self.control.panicked.swap(true, Ordering::Relaxed) {
                    self.tell(Event::Panicked("reported by the kernel (pvpanic)".into()));
                }
                return Next::Run;
            }
        };
        self.tell(event);
        Next::Stop
    }

    fn tell(&self, event: Event) {
        // The receiver is gone only when the machine is being taken down.
        let _ = self.events.send(event);
    }
}
