//! `levy bench`: what guests cost and gain together on this machine.

mod sharing;

use std::path::PathBuf;
use std::time::Duration;

use self::sharing::{HintsArgs, SharingArgs, VersusKsmArgs};
use super::run;
use super::setup::{self, ImageArgs, SetupError};
use crate::out::{self, NotShown};
use levy_bench::{self, FigureError, Interrupt, Outcome, Params, PartialResults, ReportError, TestbedError};
use levy_launcher::GuestArgs;
use levy_machine::config;
use levy_machine::process::say;

const ABOUT: &str = "\
Every bench brings a manager of its own and takes its guests down at the end, however it ends. Guests are made as
`levy run` makes them: from --kernel, --initrd and --disk, or from Levy's own Debian images. Their agent does the work,
so the initramfs must carry it (`levy images`).

Exit status: 0 measured, 1 not, 2 wrong usage, 130 after Ctrl-C.";

/// Measure what guests cost and gain together on this machine.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Bench {
    /// Does the budget hold when guests demand more memory than exists?
    #[command(mut_arg("memory", |arg| arg.hide(true)))]
    Overcommit(OvercommitArgs),
    /// How long does a guest that was squeezed to its minimum take to recover?
    #[command(mut_arg("memory", |arg| arg.hide(true)))]
    Wake(CommonArgs),
    /// Are equal pages merged sooner when guests report what they read from a shared disk?
    #[command(mut_arg("memory", |arg| arg.default_value("size=384M")))]
    Hints(HintsArgs),
    /// How much do 1 to 10 equal guests share, and how much of what an oracle finds?
    #[command(mut_arg("memory", |arg| arg.default_value("size=192M")))]
    Sharing(SharingArgs),
    /// How much do the same guests save by Levy's sharing and by the kernel's (KSM), and for how much CPU?
    #[command(mut_arg("memory", |arg| arg.default_value("size=192M")))]
    SharingVsKsm(VersusKsmArgs),
    /// What do idle guests' VMMs and their manager cost with everything on?
    #[command(mut_arg("memory", |arg| arg.default_value("size=256M")))]
    Overhead(CommonArgs),
    /// What does a busy guest gain when an idle one pays a tax on its memory?
    #[command(mut_arg("memory", |arg| arg.default_value("size=256M")))]
    Tax(TaxArgs),
}

/// What the overcommit bench takes.
#[derive(Clone, Debug, clap::Args)]
struct OvercommitArgs {
    /// CPUs that scanning may use, all guests together, while all guests are quiet before the savings are counted: an
    /// emulated host needs many times what a real one does
    #[arg(long, value_name = "CPUS", default_value = "0.2", value_parser = sharing::cpus)]
    quiet_scan_cpu: f64,
    #[command(flatten)]
    params: CommonArgs,
}

/// What the tax bench takes.
#[derive(Clone, Debug, clap::Args)]
struct TaxArgs {
    /// What the busy guest runs, NAME[,key=value]... [default: reader, over a file of 11/16 of its memory]
    #[arg(long, value_name = "NAME[,key=value]", value_parser = words)]
    workload: Option<String>,
    #[command(flatten)]
    params: CommonArgs,
}

/// A workload's words, checked.
fn words(text: &str) -> Result<String, String> {
    run::workload(text).map(|_| text.replace(',', " "))
}

/// What every bench takes.
#[derive(Clone, Debug, clap::Args)]
struct CommonArgs {
    /// Write the report here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the figure here, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Fewer guests and repeats
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    images: ImageArgs,
    /// Treat a guest as hung if its agent is not ready within TIME (60s, 2m)
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = config::duration)]
    deadline: Duration,
    #[command(flatten)]
    guest: GuestArgs,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error("there is no folder for {path}", path = .0.display())]
    NoFolder(PathBuf),
    #[error("cannot start the watch over Ctrl-C")]
    Watch(#[source] std::io::Error),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Testbed(#[from] TestbedError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error(transparent)]
    Figure(#[from] FigureError),
    #[error(transparent)]
    Shown(#[from] NotShown),
}

impl BenchArgs {
    /// Measures; the exit status of the process.
    pub fn run(self) -> u8 {
        match self.measure() {
            Ok(()) => 0,
            Err(BenchError::Testbed(TestbedError::Interrupted)) => 130,
            Err(error) => {
                say(levy_protocol::error_chain(&error));
                1
            }
        }
    }

    fn measure(self) -> Result<(), BenchError> {
        match self.bench {
            Bench::Overcommit(args) => {
                let cpus = args.quiet_scan_cpu;
                args.params.measure("overcommit", |params| {
                    levy_bench::overcommit::overcommit(params, cpus)
                })
            }
            Bench::Wake(args) => args.measure("wake", levy_bench::overcommit::wake),
            Bench::Hints(args) => args.measure(),
            Bench::Sharing(args) => args.measure(),
            Bench::SharingVsKsm(args) => args.measure(),
            Bench::Overhead(args) => args.measure("overhead", levy_bench::overhead),
            Bench::Tax(args) => {
                let work = args.workload;
                args.params
                    .measure("tax", |params| levy_bench::tax(params, work.as_deref()))
            }
        }
    }
}

impl CommonArgs {
    /// Prepares the machine, runs the bench called `name`, and leaves behind what it found.
    fn measure(
        self,
        name: &str,
        bench: impl FnOnce(&Params) -> Result<Outcome, TestbedError>,
    ) -> Result<(), BenchError> {
        let files = Files {
            json: self.json.clone(),
            plot: self.plot.clone(),
        };
        files.check()?;
        let params = self.params(name)?;
        files.leave(bench(&params), &params.partial)
    }

    fn params(mut self, name: &str) -> Result<Params, BenchError> {
        setup::several(&self.guest)?;
        let signals = setup::signals()?;
        setup::machine()?;
        let interrupt = Interrupt::watch(signals).map_err(BenchError::Watch)?;
        let backing = setup::backing(&self.guest.swap)?;
        setup::default_images(&mut self.guest, self.images)?;
        Ok(Params {
            guest: self.guest,
            quick: self.quick,
            backing,
            deadline: self.deadline,
            interrupt,
            partial: PartialResults::new(name),
        })
    }
}

/// What the user wants to have besides the table.
#[derive(Clone, Debug)]
struct Files {
    json: Option<PathBuf>,
    plot: Option<PathBuf>,
}

impl Files {
    /// An hour's work is not to be lost to a typing error.
    fn check(&self) -> Result<(), BenchError> {
        for file in [&self.json, &self.plot].into_iter().flatten() {
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            if folder.is_some_and(|folder| !folder.is_dir()) {
                return Err(BenchError::NoFolder(file.clone()));
            }
        }
        Ok(())
    }

    /// Leaves behind what was found; of a bench that failed, what it had found till then.
    fn leave(
        &self,
        found: Result<Outcome, TestbedError>,
        partial: &PartialResults,
    ) -> Result<(), BenchError> {
        let outcome = match found {
            Ok(outcome) => outcome,
            Err(error) => {
                let report = partial.failed(&levy_protocol::error_chain(&error));
                if let Err(unwritten) = report.write(self.json.as_deref()) {
                    say(levy_protocol::error_chain(&unwritten));
                }
                return Err(error.into());
            }
        };
        let shown = out::show(&outcome.table);
        outcome.report.write(self.json.as_deref())?;
        if let Some(file) = &self.plot {
            outcome.figure.write(file)?;
        }
        // Last: a table that cannot be shown is no reason to lose the files.
        Ok(shown?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bench_that_fails_midway_leaves_what_it_had_and_why() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files {
            json: Some(dir.path().join("tax.json")),
            plot: Some(dir.path().join("tax.svg")),
        };
        files.check().unwrap();
        let partial = PartialResults::new("tax");
        partial.set("arms", [1, 2]);
        let ended = TestbedError::Ended {
            name: "busy".into(),
            how: "its kernel panicked".into(),
            console: String::new(),
        };
        assert!(files.leave(Err(ended), &partial).is_err());
        let text = std::fs::read_to_string(files.json.unwrap()).unwrap();
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["results"]["arms"], serde_json::json!([1, 2]));
        let reason = report["results"]["failed"].as_str().unwrap();
        assert!(
            reason.contains("guest busy ended: its kernel panicked"),
            "{reason}"
        );
        assert!(!files.plot.unwrap().exists());
        let lost = Files {
            json: Some(dir.path().join("no/such/folder.json")),
            plot: None,
        };
        assert!(lost.check().is_err());
    }
}
