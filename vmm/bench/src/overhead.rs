//! What guests cost besides their memory: their VMM processes with everything on, and their manager.
//!
//! Equal guests fill half their memory with pages that cannot be shared and rest; the budget is too small for that, so
//! that balloons, stores and swap files are in use. When nothing moves any more, the VMMs' private memory and the
//! manager's CPU time are read.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::cpu::{process_cpu, thread_cpu};
use super::sample::{Sample, curve};
use super::{Figure, Guest, Line, Outcome, Panel, Params, Report, Testbed, TestbedError};
use levy_machine::config::MemoryConfig;
use levy_protocol::control::Request;

/// How long the guests rest before anything is read: two samples of activity for slow averages to notice.
const REST: Duration = Duration::from_secs(60);
/// How long the manager's CPU time is taken.
const WATCH: Duration = Duration::from_secs(60);
/// What a VMM may have besides its guest's memory: 5 MiB and 0.3 % of that.
const ALLOWED_KIB: u64 = 5 << 10;
const ALLOWED_PER_MILLE: u64 = 3;

/// One guest's VMM.
#[derive(Clone, Debug, Serialize)]
struct Vmm {
    name: String,
    /// Private memory outside the guest's memory.
    private_kib: u64,
    /// Of that, what compressed pages occupy: guest memory in another form.
    store_kib: u64,
    /// The guest's pages by where they are, MiB.
    ballooned_mib: u64,
    compressed_mib: u64,
    swapped_mib: u64,
}

impl Vmm {
    /// What the VMM needs for itself.
    fn own_kib(&self) -> u64 {
        self.private_kib.saturating_sub(self.store_kib)
    }
}

/// Runs the bench.
///
/// # Errors
/// When a guest does not do its work.
pub fn overhead(params: &Params) -> Result<Outcome, TestbedError> {
    let count = if params.quick { 2 } else { 8 };
    let memory = params.guest.memory;
    // Boot and the fill need about three quarters of the memory; there is room for half.
    let mut testbed = Testbed::open(params, params.settings(memory.bytes / 2 * count + (24 << 20)))?;
    let mut guests = Vec::new();
    for number in 1..=count {
        let guest = testbed.start_usual(&format!("idle-{number}"))?;
        testbed.ready(&[guest])?;
        // Other contents in every guest: stores and swap are to be used, not the pool.
        let fill = format!("fill mib={} seed={number} seconds=86400", memory.bytes >> 21);
        let run = testbed.run(guest, &fill)?;
        let patience = Duration::from_secs(300);
        testbed.until(patience, "a guest has filled its memory", |testbed| {
            let remarks = &testbed.run_of(run).remarks;
            remarks.iter().any(|(_, name, _)| name == "filled").then_some(())
        })?;
        guests.push(guest);
    }
    testbed.say("the guests rest");
    testbed.pass(REST)?;
    let (cpu, from) = (manager_cpu(), testbed.seconds());
    testbed.pass(WATCH)?;
    let percent = (manager_cpu() - cpu).as_secs_f64() / (testbed.seconds() - from) * 100.0;
    let vmms: Result<Vec<_>, _> = guests.iter().map(|guest| vmm(&testbed, *guest)).collect();
    Ok(outcome(&testbed, &memory, &vmms?, percent))
}

/// CPU time of this process, which is the manager's, less that of this thread, which is the bench's.
fn manager_cpu() -> Duration {
    process_cpu().saturating_sub(thread_cpu())
}

fn vmm(testbed: &Testbed, guest: Guest) -> Result<Vmm, TestbedError> {
    let stats = testbed.ask(guest, &Request::Stats)?;
    let name = testbed.name(guest).to_owned();
    let sample = testbed.samples().last().and_then(|sample| sample.guest(&name));
    let sample = sample.cloned().unwrap_or_default();
    Ok(Vmm {
        private_kib: stats["memory"]["vmm_private_kib"].as_u64().unwrap_or_default(),
        store_kib: sample.memory.store_bytes >> 10,
        ballooned_mib: sample.memory.ballooned_bytes >> 20,
        compressed_mib: sample.memory.compressed_bytes >> 20,
        swapped_mib: sample.memory.swapped_bytes >> 20,
        name,
    })
}

fn outcome(testbed: &Testbed, memory: &MemoryConfig, vmms: &[Vmm], manager_percent: f64) -> Outcome {
    let allowed = ALLOWED_KIB + (memory.bytes >> 10) * ALLOWED_PER_MILLE / 1000;
    let most = vmms.iter().map(Vmm::own_kib).max().unwrap_or_default();
    let mut report = Report::new("overhead");
    report.set("vmm_private_kib", most);
    report.set("vmm_private_allowed_kib", allowed);
    report.set("manager_cpu_percent", manager_percent);
    report.set("guests", vmms);
    report.set("samples", testbed.samples());
    let mut table = "guest     own KiB  store KiB  ballooned  compressed  swapped MiB\n".to_owned();
    for vmm in vmms {
        let _ = writeln!(
            table,
            "{:<8} {:>8} {:>10} {:>10} {:>11} {:>12}",
            vmm.name,
            vmm.own_kib(),
            vmm.store_kib,
            vmm.ballooned_mib,
            vmm.compressed_mib,
            vmm.swapped_mib
        );
    }
    let _ = writeln!(
        table,
        "most private memory of a VMM beside its guest's: {most} KiB, of {allowed} KiB allowed\n\
         the manager takes {manager_percent:.2} % of one CPU for {} idle guests",
        vmms.len()
    );
    let used = |of: fn(&Sample) -> u64| curve(testbed.samples(), |sample| Some(of(sample)));
    let figure = Figure {
        title: "Idle guests in half their memory".into(),
        x: "seconds".into(),
        panels: vec![Panel {
            y: "MiB".into(),
            lines: vec![
                Line::new("used", used(|sample| sample.used_bytes)),
                Line::new("budget", used(|sample| sample.budget_bytes)),
            ],
        }],
    };
    Outcome {
        report,
        table,
        figure,
    }
}
