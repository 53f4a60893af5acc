//! One vCPU: its thread, and the handle that starts, pauses and ends it.
#![allow(unsafe_code)]
// UNSAFETY: maps the vCPU's run page a second time, so that `immediate_exit` can be set from another thread.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::program::{PORT_DONE, PORT_WRONG};
use crate::{Error, PAGE};

/// How long a kick is given before it is repeated.
const KICK_AGAIN: Duration = Duration::from_millis(20);

/// What the handle wants the thread to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Run,
    Hold,
    Quit,
}

#[derive(Debug)]
struct State {
    want: Want,
    /// The thread is outside the guest and stays there.
    parked: bool,
    /// The program said that it is done and was not started again.
    done: bool,
    /// Why the thread ended, if not on request.
    failure: Option<Error>,
}

/// What handle and thread share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    run_page: RunPage,
}

/// A vCPU with its thread; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Vcpu {
    index: usize,
    tsc_khz: u32,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Starts the thread of `vcpu`; the guest code waits for [`Vcpu::run`].
    pub(crate) fn spawn(index: usize, vcpu: VcpuFd) -> Result<Self, Error> {
        take_signal()?;
        let tsc_khz = vcpu.get_tsc_khz().map_err(|source| Error::Kvm {
            step: "name the frequency of a vCPU's clock",
            source,
        })?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                want: Want::Hold,
                parked: false,
                done: false,
                failure: None,
            }),
            changed: Condvar::new(),
            run_page: RunPage::map(&vcpu)?,
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("ring3-vcpu{index}"))
            .spawn(move || of_thread.live(index, vcpu))
            .map_err(|source| Error::Thread {
                step: "start the thread of a vCPU",
                source,
            })?;
        Ok(Self {
            index,
            tsc_khz,
            shared,
            thread: Some(thread),
        })
    }

    pub(crate) fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Lets the guest code run, from its start or from where it was paused or done.
    pub(crate) fn run(&self) {
        let mut state = self.shared.lock();
        state.want = Want::Run;
        state.done = false;
        self.shared.changed.notify_all();
    }

    /// Lets the guest code run on, unless its program is done.
    pub(crate) fn resume(&self) {
        let mut state = self.shared.lock();
        if !state.done {
            state.want = Want::Run;
            self.shared.changed.notify_all();
        }
    }

    /// Takes the vCPU out of the guest and waits until it is out.
    pub(crate) fn pause(&self, limit: Duration) -> Result<(), Error> {
        self.shared.ask(Want::Hold);
        self.wait(limit, "pause", |state| state.parked)
    }

    /// Waits until the program has said that it is done.
    pub(crate) fn wait_done(&self, limit: Duration) -> Result<(), Error> {
        self.wait(limit, "see the stop flag", |state| state.done)
    }

    /// The error that ended the thread, once.
    pub(crate) fn failure(&self) -> Result<(), Error> {
        self.shared.lock().failure.take().map_or(Ok(()), Err)
    }

    fn wait(
        &self,
        limit: Duration,
        what: &'static str,
        reached: impl Fn(&State) -> bool,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            if let Some(failure) = state.failure.take() {
                return Err(failure);
            }
            if reached(&state) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let vcpu = self.index;
                return Err(Error::Deadline { vcpu, what, limit });
            }
            if state.want != Want::Run {
                self.kick();
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, KICK_AGAIN)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Interrupts KVM_RUN. `immediate_exit` is set before, so a kick that comes too early is not lost.
    fn kick(&self) {
        if let Some(thread) = &self.thread {
            // A thread that ended by itself no longer takes signals; its failure tells why.
            let _ = thread.kill(SIGRTMIN());
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.shared.ask(Want::Quit);
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            assert!(
                Instant::now() < deadline,
                "vCPU {} cannot be stopped: its memory may not be unmapped under it",
                self.index
            );
            self.kick();
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(thread) = self.thread.take() {
            // The thread has ended and panics abort, so there is nothing left to learn from it.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, want: Want) {
        let mut state = self.lock();
        state.want = want;
        self.run_page.immediate_exit(true);
        self.changed.notify_all();
        drop(state);
    }

    /// The life of the vCPU's thread.
    fn live(&self, index: usize, mut vcpu: VcpuFd) {
        while self.may_enter() {
            match step(index, &mut vcpu) {
                Ok(Step::Again) => {}
                Ok(Step::Done) => self.finish_program(),
                Err(failure) => {
                    let mut state = self.lock();
                    state.failure = Some(failure);
                    state.parked = true;
                    self.changed.notify_all();
                    return;
                }
            }
        }
    }

    /// Waits until the guest may be entered; false ends the thread.
    fn may_enter(&self) -> bool {
        let mut state = self.lock();
        while state.want == Want::Hold {
            state.parked = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked = false;
        // Cleared under the lock that `ask` sets it under: a later request finds it cleared or sets it again.
        self.run_page.immediate_exit(false);
        state.want == Want::Run
    }

    fn finish_program(&self) {
        let mut state = self.lock();
        if state.want == Want::Run {
            state.want = Want::Hold;
        }
        state.done = true;
        self.changed.notify_all();
    }
}

enum Step {
    Again,
    Done,
}

/// Runs the guest until it leaves.
fn step(index: usize, vcpu: &mut VcpuFd) -> Result<Step, Error> {
    let reason = match vcpu.run() {
        Ok(VcpuExit::IoOut(PORT_DONE, _)) => return Ok(Step::Done),
        Ok(VcpuExit::IoOut(PORT_WRONG, _) | VcpuExit::Intr) => return Ok(Step::Again),
        Ok(VcpuExit::Shutdown) => "a triple fault: the guest has no exception handlers".to_owned(),
        Ok(VcpuExit::MmioRead(at, _)) => format!("a read of {at:#x}, where the guest has no memory"),
        Ok(VcpuExit::MmioWrite(at, _)) => format!("a write to {at:#x}, where the guest has no memory"),
        Ok(other) => format!("unexpected exit {other:?}"),
        Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => return Ok(Step::Again),
        Err(errno) => format!("KVM_RUN failed: {errno}"),
    };
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    Err(Error::Exit {
        vcpu: index,
        rip,
        reason,
    })
}

/// A second mapping of the page that KVM and user space share for one vCPU.
#[derive(Debug)]
struct RunPage(NonNull<u8>);

// SAFETY: only the `immediate_exit` byte is touched, atomically; KVM reads it at any time by its own contract.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    fn map(vcpu: &VcpuFd) -> Result<Self, Error> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new shared mapping of the vCPU's first page, at an address of the kernel's choice.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, vcpu.as_raw_fd(), 0) };
        NonNull::new(page.cast::<u8>())
            .filter(|_| page != libc::MAP_FAILED)
            .map(Self)
            .ok_or_else(|| Error::Map {
                what: "a vCPU's run page",
                bytes: PAGE,
                source: io::Error::last_os_error(),
            })
    }

    fn immediate_exit(&self, exit: bool) {
        // SAFETY: the field lies inside the mapped page, which lives as long as self.
        let byte = unsafe {
            &*self
                .0
                .as_ptr()
                .add(std::mem::offset_of!(kvm_run, immediate_exit))
                .cast::<AtomicU8>()
        };
        byte.store(u8::from(exit), Ordering::SeqCst);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and belongs to this value alone.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

/// Installs the handler of the kick signal, once in a process: without one the signal would end the process.
fn take_signal() -> Result<(), Error> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = register_signal_handler(SIGRTMIN(), ignore));
    result.map_err(|errno| Error::Thread {
        step: "install the handler of the vCPUs' kick signal",
        source: io::Error::from_raw_os_error(errno.errno()),
    })
}
