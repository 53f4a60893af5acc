//! The thread of the rounds: it asks the kernel what is held, and hands the orders out.

use std::time::{Duration, Instant};

use super::host::Host;
use super::manager::{Effect, Event};
use super::survey::Survey;
use levy_protocol::process_memory::ProcessMemory;

impl Host {
    /// Runs rounds until [`Host::close`]. Its sockets are gone when this returns.
    pub fn run(&self) {
        let mut memory = ProcessMemory::default();
        while !self.is_closing() {
            let (soonest, latest) = self.state().manager.round_window();
            self.round_trigger().wait_between(soonest, latest);
            let (began, cpu) = (Instant::now(), thread_cpu());
            self.look_after_sockets();
            self.look_for_the_dead();
            let effects = self.state().handle(Event::Clock);
            self.carry_out_round(effects, &mut memory);
            self.handle(Event::RoundEnded {
                cpu: thread_cpu().saturating_sub(cpu),
                work: began.elapsed(),
            });
        }
        // The thread that closes may not have come so far, and the process ends after this.
        drop(self.open_sockets().take());
    }

    /// Asking the kernel about a thousand processes takes long enough to do it without the lock.
    fn carry_out_round(&self, mut effects: Vec<Effect>, memory: &mut ProcessMemory) {
        let measure = effects.pop_if(|effect| matches!(effect, Effect::Measure(..)));
        self.carry_out(effects);
        if let Some(Effect::Measure(processes, elapsed)) = measure {
            memory.pass(elapsed);
            let domains = self.domains().into_values().collect();
            let survey = Survey { processes, domains };
            self.handle(Event::Measured(survey.measure(memory)));
        }
    }

    /// A closed connection releases nothing; a dead process does. Looks for those again, too, that could not be looked at
    /// when the manager began.
    pub(super) fn look_for_the_dead(&self) {
        let mut effects = Vec::new();
        {
            let mut state = self.state();
            for guest in state.processes.dead() {
                effects.extend(state.handle(Event::Died(guest)));
            }
            let unwatched = state.manager.registry().unwatched();
            if !unwatched.is_empty() {
                let fates = state.processes.look(&unwatched);
                effects.extend(state.handle(Event::Found(fates)));
            }
        }
        self.carry_out(effects);
    }
}

fn thread_cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32)
}
