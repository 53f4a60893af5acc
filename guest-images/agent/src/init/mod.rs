//! PID 1: from the kernel's hand-over to a guest that obeys the host.
//!
//! The same code serves three places: the initramfs with a root disk (mount it, move there, go on as the same
//! process), the initramfs alone, and `/sbin/init` of a disk that a foreign initramfs mounted.

mod button;
mod channel;
mod children;
mod cmdline;
mod control;
mod modules;
mod mounts;
mod network;
mod power;

use std::fs;
use std::process::ExitCode;
use std::sync::Arc;

use levy_agent::{Action, Command, Report, Workload};

use channel::Channel;
use cmdline::Cmdline;
use control::Control;

/// Brings the guest up and serves it until it is switched off.
pub(crate) fn main() -> ExitCode {
    let trouble = mounts::system();
    let cmdline = Cmdline::of_kernel();
    let mut complaints = trouble;
    complaints.extend(modules::load(modules::Stage::Early));
    let channel = Arc::new(Channel::open());
    channel.report(Report::Boot {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: release(),
    });

    complaints.extend(modules::load(modules::Stage::Late));
    complaints.extend(network::up(&cmdline));
    modules::keep();
    let root = match mounts::root(&cmdline) {
        Ok(root) => root,
        Err(error) => {
            // Without its disk the guest can still be asked what is wrong.
            complaints.push(error);
            "initramfs".to_owned()
        }
    };
    power::obey_signals(&channel);
    children::reap_orphans();
    button::watch(&channel);
    for message in complaints {
        channel.report(Report::Error { message });
    }
    channel.report(ready(root, &channel));
    serve(&channel, &cmdline)
}

fn serve(channel: &Arc<Channel>, cmdline: &Cmdline) -> ! {
    let control = Control::new(Arc::clone(channel));
    match boot_run(cmdline) {
        Ok(Some(workload)) => control.obey(Command {
            id: 0,
            action: Action::Run(workload),
        }),
        Ok(None) => {}
        Err(error) => channel.report(Report::Error {
            message: format!("levy.run: {error}"),
        }),
    }
    loop {
        let line = channel.read_line();
        if line.trim().is_empty() {
            continue;
        }
        match Command::parse(&line) {
            Ok(command) => control.obey(command),
            Err(message) => channel.report(Report::Error { message }),
        }
    }
}

/// The workload that the kernel's command line asks for.
fn boot_run(cmdline: &Cmdline) -> Result<Option<Workload>, String> {
    let Some(name) = &cmdline.run else { return Ok(None) };
    let words = cmdline.args.split(',').filter(|word| !word.is_empty());
    Workload::from_words(name, words).map(Some)
}

fn ready(root: String, channel: &Channel) -> Report {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Report::Ready {
        root,
        channel: channel.name().to_owned(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory_kib: control::meminfo()
            .get("MemTotal")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0),
    }
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}
