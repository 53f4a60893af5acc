//! `levy up` and `levy down`: the guests of a fleet file.

use std::path::PathBuf;
use std::time::Duration;

use super::asking::{AskError, Asking, status};
use super::fleet_file::{FleetFile, FleetGuest};
use super::run::{self, RunError};
use super::{setup, stop};
use levy_launcher::api_client::{Client, ClientError};
use levy_launcher::{Fleet, Plan, PlannedGuest, Screen, ScreenStyle};
use levy_machine::config;
use levy_protocol::api::StopOrder;

const EXAMPLE: &str = "\
A fleet file, every key but size optional, with at most 1024 guests:
  deadline = \"2m\"             # longest time until a guest is ready
  [host]                      # settings of the manager that comes along where no `levy host` is running
  budget = \"1G\"
  tax = 75
  rebalance = \"15s\"
  [guest.web]                 # web-1 to web-4
  count = 4
  size = \"256M\"               # also: min, shares, cpus, kernel, initrd, cmdline, disks, no_disk, kaslr, balloon
  min = \"64M\"
  shares = \"high\"
  workload = \"nginx\"
  on_reboot = \"exit\"          # else it starts again in its place
  group = \"front\"
  [groups.front]              # guests that claim memory as one: shares, min and max for all together
  shares = \"high\"
  max = \"768M\"
  [guest.db]
  size = \"512M\"
  domain = \"data\"             # or sharing = false; else all guests of the file share with each other

Exit status: as for `levy run`.";

/// Run the guests of a fleet file until they have ended.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct UpArgs {
    /// The fleet file
    #[arg(value_name = "FLEET.toml")]
    fleet: PathBuf,
    /// Run directory of the manager to use; `own` manages these guests alone, `none` leaves their memory alone
    /// [default: the running `levy host`, or own]
    #[arg(long, value_name = "DIR|own|none")]
    manager: Option<PathBuf>,
    /// Print JSON: one object per line on standard output, the last one a summary
    #[arg(long)]
    json: bool,
}

/// Stop those guests that were started from a fleet file, whichever manager they have. Guests of the same names that
/// were started otherwise run on.
#[derive(Clone, Debug, clap::Args)]
pub struct DownArgs {
    /// The fleet file
    #[arg(value_name = "FLEET.toml")]
    fleet: PathBuf,
    /// How long to wait until they are gone; 0s does not wait
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = config::duration)]
    wait: Duration,
    #[command(flatten)]
    asking: Asking,
}

impl UpArgs {
    /// Runs the guests to their end; the exit status of the process.
    pub fn run(self) -> u8 {
        run::ended(self.launch())
    }

    fn launch(self) -> Result<u8, RunError> {
        let signals = setup::signals()?;
        let fleet = FleetFile::read(&self.fleet)?;
        setup::machine()?;
        let style = match self.json {
            true => ScreenStyle::Json,
            false => ScreenStyle::Text,
        };
        let swap = &fleet.guests[0].args.swap;
        let manager = run::manager(self.manager.as_deref(), &fleet.policy, swap)?;
        let (deadline, patience, keep) = (fleet.deadline, fleet.patience, fleet.keep);
        let planned = |mut guest: FleetGuest| {
            setup::default_images(&mut guest.args, guest.images)?;
            let layers = run::kept_layers(&mut guest.args, guest.on_reboot)?;
            Ok(PlannedGuest {
                on_reboot: guest.on_reboot,
                layers,
                args: guest.to_args(deadline, &fleet.id),
                name: guest.name,
                workload: guest.workload,
            })
        };
        let guests: Result<_, RunError> = fleet.guests.clone().into_iter().map(planned).collect();
        let plan = Plan {
            guests: guests?,
            patience,
            keep,
            manager,
        };
        Ok(Fleet::launch(plan, Screen::new(style), signals)?.run().status)
    }
}

impl DownArgs {
    /// Stops the guests; the exit status of the process.
    pub fn run(self) -> u8 {
        status(self.down())
    }

    fn down(self) -> Result<(), AskError> {
        let fleet = FleetFile::read(&self.fleet)?.id;
        let managers = match &self.asking.run_dir {
            Some(dir) => vec![Client::at(dir)],
            None => Client::running(),
        };
        let mut told = stop::Told::default();
        for manager in &managers {
            let running = match manager.guests() {
                Ok(running) => running,
                // A launcher's that has just ended.
                Err(ClientError::Unreachable { .. }) if self.asking.run_dir.is_none() => continue,
                Err(error) => return Err(error.into()),
            };
            let ours = running
                .into_iter()
                .filter(|guest| guest.fleet.as_ref() == Some(&fleet));
            let ours: Vec<_> = ours.map(|guest| guest.name).collect();
            told.add(stop::stop(manager, &ours, &StopOrder::default(), self.wait)?);
        }
        if told.is_empty() {
            return Err(AskError::NoneRuns { path: self.fleet });
        }
        told.show(&self.asking, stop::word(self.wait))
    }
}
