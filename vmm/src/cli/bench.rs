//! `levy bench`: what guests cost and gain together on this machine.

mod sharing;

use std::path::PathBuf;
use std::time::Duration;

use self::sharing::{SharingArgs, VersusKsmArgs};
use super::run;
use super::vmm::GuestArgs;
use crate::bench::{self, FigureError, Interrupt, Outcome, ReportError, Scene, StageError};
use crate::config::DiskMode;
use crate::manager::place;
use crate::{config, doctor, process};

const ABOUT: &str = "\
Every bench brings a manager of its own and takes its guests down at the end, however it ends. Guests are made as
`levy run` makes them: from --kernel, --initrd and --disk, or from Levy's own Debian images. Their agent does the work,
so the initramfs must carry it (`levy images`).

Exit status: 0 measured, 1 not, 2 wrong usage, 130 after Ctrl-C.";

/// Measure what guests together cost and gain on this machine.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Bench {
    /// Do a budget and its guests hold when guests want far more memory than there is?
    #[command(mut_arg("memory", |arg| arg.hide(true)))]
    Overcommit(SceneArgs),
    /// How long does a guest that was squeezed to its minimum take to be itself again?
    #[command(mut_arg("memory", |arg| arg.hide(true)))]
    Wake(SceneArgs),
    /// How much do 1 to 10 equal guests share, and how much of what an oracle finds?
    #[command(mut_arg("memory", |arg| arg.default_value("size=192M")))]
    Sharing(SharingArgs),
    /// How much do the same guests save by Levy's sharing and by the kernel's (KSM), and for how much CPU?
    #[command(mut_arg("memory", |arg| arg.default_value("size=192M")))]
    SharingVsKsm(VersusKsmArgs),
    /// What do idle guests' VMMs and their manager cost with everything on?
    #[command(mut_arg("memory", |arg| arg.default_value("size=256M")))]
    Overhead(SceneArgs),
    /// What does a busy guest gain when an idle one pays a tax on its memory?
    #[command(mut_arg("memory", |arg| arg.default_value("size=256M")))]
    Tax(TaxArgs),
}

/// What the tax bench takes.
#[derive(Clone, Debug, clap::Args)]
struct TaxArgs {
    /// What the busy guest runs, NAME[,key=value]... [default: reader, over a file of 11/16 of its memory]
    #[arg(long, value_name = "NAME[,key=value]", value_parser = words)]
    workload: Option<String>,
    #[command(flatten)]
    scene: SceneArgs,
}

/// A workload's words, checked.
fn words(text: &str) -> Result<String, String> {
    run::workload(text).map(|_| text.replace(',', " "))
}

/// What every bench takes.
#[derive(Clone, Debug, clap::Args)]
struct SceneArgs {
    /// Write the report here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the figure here, as SVG
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Fewer guests and repeats
    #[arg(long)]
    quick: bool,
    /// Do not attach the Debian disk that guests without --kernel and --disk otherwise share
    #[arg(long)]
    no_disk: bool,
    /// A guest hangs if its agent is not ready by then (60s, 2m)
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = config::duration)]
    deadline: Duration,
    #[command(flatten)]
    guest: GuestArgs,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error("{0}")]
    NoKernelsHere(doctor::Machine),
    #[error("there is no folder for {path}", path = .0.display())]
    NoFolder(PathBuf),
    #[error("cannot build the guest image; give your own with --kernel and --initrd")]
    Images(#[source] guest_images::Error),
    #[error("--net {0} cannot serve several guests; benches need no network")]
    Tap(String),
    #[error("--disk path={path} cannot be written by several guests; add overlay=on or readonly=on", path = .0.display())]
    WrittenDisk(PathBuf),
    #[error("the host cannot start this process properly")]
    Process(#[source] std::io::Error),
    #[error("cannot use {dir} for swap; give another --swap", dir = dir.display())]
    Swap {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error(transparent)]
    Figure(#[from] FigureError),
}

impl BenchArgs {
    /// Measures; the exit status of the process.
    pub fn run(self) -> u8 {
        match self.measure() {
            Ok(()) => 0,
            Err(BenchError::Stage(StageError::Interrupted)) => 130,
            Err(error) => {
                eprintln!("levy: {}", process::chain(&error));
                1
            }
        }
    }

    fn measure(self) -> Result<(), BenchError> {
        match self.bench {
            Bench::Overcommit(args) => args.play(bench::overcommit::overcommit),
            Bench::Wake(args) => args.play(bench::overcommit::wake),
            Bench::Sharing(args) => args.measure(),
            Bench::SharingVsKsm(args) => args.measure(),
            Bench::Overhead(args) => args.play(bench::overhead),
            Bench::Tax(args) => {
                let work = args.workload;
                args.scene.play(|scene| bench::tax(scene, work.as_deref()))
            }
        }
    }
}

impl SceneArgs {
    /// Sets the scene, runs `bench` on it, and leaves behind what it found.
    fn play(self, bench: impl FnOnce(&Scene) -> Result<Outcome, StageError>) -> Result<(), BenchError> {
        let (json, plot) = (self.json.clone(), self.plot.clone());
        // An hour's work is not to be lost to a typing error.
        for file in [&json, &plot].into_iter().flatten() {
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            if folder.is_some_and(|folder| !folder.is_dir()) {
                return Err(BenchError::NoFolder(file.clone()));
            }
        }
        let outcome = bench(&self.scene()?)?;
        print!("{}", outcome.table);
        outcome.report.write(json.as_deref())?;
        if let Some(file) = plot {
            outcome.figure.write(&file)?;
        }
        Ok(())
    }

    fn scene(mut self) -> Result<Scene, BenchError> {
        if let Some(net) = self.guest.net.first() {
            return Err(BenchError::Tap(net.to_string()));
        }
        if let Some(disk) = self.guest.disk.iter().find(|disk| disk.mode == DiskMode::Write) {
            return Err(BenchError::WrittenDisk(disk.path.clone()));
        }
        let signals = process::block_end_signals().map_err(BenchError::Process)?;
        match doctor::Machine::probe() {
            found if found.runs_kernels() => {}
            found => return Err(BenchError::NoKernelsHere(found)),
        }
        let interrupt = Interrupt::watch(signals).map_err(BenchError::Process)?;
        let dir = self.guest.swap.clone();
        let backing = place::backing(&dir).map_err(|source| BenchError::Swap { dir, source })?;
        run::default_images(&mut self.guest, self.no_disk).map_err(BenchError::Images)?;
        Ok(Scene {
            guest: self.guest,
            quick: self.quick,
            backing,
            deadline: self.deadline,
            interrupt,
        })
    }
}
