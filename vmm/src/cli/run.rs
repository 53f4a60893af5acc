//! `levy run`: guests for people.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use levy_agent::Workload;

use super::fleet_file::FleetFileError;
use super::host::PolicyArgs;
use super::setup::{self, ImageArgs, SetupError};
use levy_launcher::{
    Fleet, FleetError, GuestArgs, Manager, OnReboot, Plan, PlannedGuest, Screen, ScreenStyle, keep_layers,
};
use levy_machine::config;
use levy_machine::process::say;
use levy_machine::virtio::blk::DiskError;
use levy_manager::budget::BudgetError;

use levy_protocol::run_dir;
use levy_protocol::run_dir::Sockets;

const EXAMPLES: &str = "\
Without --kernel, guests boot a stock Debian kernel with Levy's agent; without --disk they share a Debian disk, each
under a private layer that is gone afterwards. All of it is built from Debian packages on first use.
With --workload, each guest runs it, is switched off after its verdict, and the verdict decides the exit status:
idle, toucher, fill, churn, file work everywhere; reader, redis, nginx, pgbench, dbench need the Debian disk. Parameters follow the
name: --workload churn,mib=64,seconds=10

Examples:
  levy run                                        one guest until Ctrl-C
  levy run --count 3 --workload redis
  levy run --count 3 --workload redis --workload nginx --workload pgbench
  levy run --count 8 --no-disk --memory size=256M --workload churn,mib=32,seconds=5
  levy run --json --no-disk --workload fill,mib=100 | jq .
  levy run --kernel bzImage --initrd initrd.img --disk path=root.img,overlay=on --cmdline root=/dev/vda

Exit status: that of the first guest that did not end well (see `levy vmm --help`), 7 for a bad or missing verdict,
130 after Ctrl-C.";

/// Run one or more guests, each in a process of its own.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Number of equal guests
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    count: u16,
    /// Name of the guests; a number follows when there are several
    #[arg(long, default_value = "guest", value_parser = config::guest_name)]
    name: String,
    #[command(flatten)]
    images: ImageArgs,
    /// What the guests run: NAME[,key=value]... Repeatable; the guests take them in turn
    #[arg(long = "workload", value_name = "NAME[,key=value]", value_parser = workload)]
    workloads: Vec<Workload>,
    /// Treat a guest as hung if its agent is not ready within TIME (60s, 2m)
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = config::duration)]
    deadline: Duration,
    /// Treat a guest as hung if its workload takes TIME longer than it announces
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = config::duration)]
    patience: Duration,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Run directory of the manager to use; `own` manages these guests alone, `none` leaves their memory alone
    /// [default: the running `levy host`, or own]
    #[arg(long, value_name = "DIR|own|none")]
    manager: Option<PathBuf>,
    /// Leave guests running after their verdict
    #[arg(long)]
    keep: bool,
    /// What happens when a guest restarts: another process takes its place, with the same name and disks, or it has ended
    #[arg(long, value_enum, default_value = "restart")]
    on_reboot: OnReboot,
    /// Print JSON: one object per line on standard output, the last one a summary
    #[arg(long)]
    json: bool,
}

/// A workload as it is typed.
pub(super) fn workload(text: &str) -> Result<Workload, String> {
    let (name, words) = text.split_once(',').unwrap_or((text, ""));
    Workload::from_words(name, words.split(',').filter(|word| !word.is_empty()))
}

/// What went wrong before guests ran.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Budget(#[from] BudgetError),
    #[error("{0}; give a shorter --name")]
    Name(String),
    #[error(transparent)]
    Layer(#[from] DiskError),
    #[error(transparent)]
    File(#[from] FleetFileError),
    #[error(transparent)]
    Fleet(#[from] FleetError),
}

/// The exit status of a launch, of which a failure is told.
pub(super) fn ended(launch: Result<u8, RunError>) -> u8 {
    launch.unwrap_or_else(|error| {
        say(levy_protocol::error_chain(&error));
        1
    })
}

impl RunArgs {
    /// Runs the guests to their end; the exit status of the process.
    pub fn run(self) -> u8 {
        ended(self.launch())
    }

    fn launch(self) -> Result<u8, RunError> {
        let signals = setup::signals()?;
        if self.count > 1 {
            setup::several(&self.guest)?;
        }
        // The last one's is the longest.
        config::guest_name(&self.guest_name(self.count)).map_err(RunError::Name)?;
        setup::machine()?;
        let style = if self.json {
            ScreenStyle::Json
        } else {
            ScreenStyle::Text
        };
        let screen = Screen::new(style);
        let plan = self.plan()?;
        Ok(Fleet::launch(plan, screen, signals)?.run().status)
    }

    fn guest_name(&self, number: u16) -> String {
        match self.count {
            1 => self.name.clone(),
            _ => format!("{}-{number}", self.name),
        }
    }

    fn plan(mut self) -> Result<Plan, RunError> {
        let manager = manager(self.manager.as_deref(), &self.policy, &self.guest.swap)?;
        setup::default_images(&mut self.guest, self.images)?;
        let planned = |n: u16| {
            let mut guest = self.guest.clone();
            let layers = kept_layers(&mut guest, self.on_reboot)?;
            let mut args = guest.to_args();
            args.extend([
                "--deadline".into(),
                format!("{}ms", self.deadline.as_millis()).into(),
            ]);
            Ok(PlannedGuest {
                name: self.guest_name(n),
                args,
                workload: self.workloads.iter().cycle().nth(usize::from(n) - 1).cloned(),
                on_reboot: self.on_reboot,
                layers,
            })
        };
        let guests: Result<_, RunError> = (1..=self.count).map(planned).collect();
        Ok(Plan {
            guests: guests?,
            patience: self.patience,
            keep: self.keep,
            manager,
        })
    }
}

/// The manager that the user chose; by default the running one, else one of the launcher's own.
pub(super) fn manager(choice: Option<&Path>, policy: &PolicyArgs, swap: &Path) -> Result<Manager, RunError> {
    match choice.and_then(Path::to_str) {
        Some("none") => return Ok(Manager::None),
        Some("own") => {}
        Some(dir) => return Ok(Manager::Running(dir.into())),
        None => {
            let dir = run_dir::default_dir();
            if !run_dir::is_strangers(&dir)
                && std::os::unix::net::UnixStream::connect(Sockets::in_dir(&dir).guests).is_ok()
            {
                return Ok(Manager::Running(dir));
            }
        }
    }
    let (settings, _) = policy.settings()?;
    let backing = setup::backing(swap)?;
    Ok(Manager::Own(Box::new(settings), backing, policy.cgroup.clone()))
}

/// Layers for the overlays of a guest that may restart.
pub(super) fn kept_layers(guest: &mut GuestArgs, on_reboot: OnReboot) -> Result<Vec<Arc<File>>, RunError> {
    match on_reboot {
        OnReboot::Exit => Ok(Vec::new()),
        OnReboot::Restart => {
            let layers = keep_layers(&mut guest.disk)?;
            Ok(layers.into_iter().map(Arc::new).collect())
        }
    }
}
