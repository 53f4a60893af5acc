//! `levy bench sharing`, `levy bench sharing-vs-ksm` and `levy bench hints`.

use std::time::Duration;

use super::{BenchError, CommonArgs};
use levy_bench::{HintedReads, Sharing, VersusKsm};
use levy_machine::config;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct VersusKsmArgs {
    /// Guests [default: 4; 2 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    guests: Option<u32>,
    /// CPUs that Levy's scanning may use, all guests together: an emulated host needs many times what a real one does
    #[arg(long, value_name = "CPUS", default_value = "0.2", value_parser = cpus)]
    scan_cpu: f64,
    /// Pages that KSM looks at between two rests of 20 ms; the kernel's default is 100
    #[arg(long, value_name = "PAGES", default_value = "100", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    ksm_pages: u64,
    /// Longest time for either to find everything
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = config::duration)]
    longest: Duration,
    /// What each guest does first: WORKLOAD [key=value]...; {n} stands for the guest's number. Repeatable, done one after
    /// the other; with & at the end it goes on until all is measured [default: pgbench, nginx, redis; churn without a disk]
    #[arg(long, value_name = "WORDS")]
    work: Vec<String>,
    #[command(flatten)]
    params: CommonArgs,
}

impl VersusKsmArgs {
    pub(super) fn measure(self) -> Result<(), BenchError> {
        let bench = self.bench();
        self.params.measure("sharing-vs-ksm", |params| bench.run(params))
    }

    fn bench(&self) -> VersusKsm {
        VersusKsm {
            guests: self.guests.unwrap_or(if self.params.quick { 2 } else { 4 }),
            work: work(&self.work, self.params.images.no_disk),
            scan_cpu: self.scan_cpu,
            ksm_pages: self.ksm_pages,
            longest: self.longest,
        }
    }
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct SharingArgs {
    /// Most guests [default: 10; 4 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    guests: Option<u32>,
    /// Measure these numbers of guests only, as in 1,5,10 [default: 1 to the most; 1, 2, 4 with --quick]
    #[arg(long, value_name = "N,...", value_delimiter = ',', conflicts_with = "guests",
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    counts: Vec<u32>,
    /// How long all guests are quiet before anything is measured
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = config::duration)]
    quiet: Duration,
    /// CPUs that scanning may use, all guests together: an emulated host needs many times what a real one does
    #[arg(long, value_name = "CPUS", default_value = "0.2", value_parser = cpus)]
    scan_cpu: f64,
    /// What each guest does first: WORKLOAD [key=value]...; {n} stands for the guest's number. Repeatable, done one after
    /// the other; with & at the end it goes on until all is measured [default: pgbench, nginx, redis; churn without a disk]
    #[arg(long, value_name = "WORDS")]
    work: Vec<String>,
    #[command(flatten)]
    params: CommonArgs,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct HintsArgs {
    /// Turns of each pair of guests [default: 3; 1 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8))]
    repeats: Option<u32>,
    /// CPUs that scanning may use, all guests together: an emulated host needs many times what a real one does
    #[arg(long, value_name = "CPUS", default_value = "0.2", value_parser = cpus)]
    scan_cpu: f64,
    /// How long a pair is watched after its second guest has read
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = config::duration)]
    watch: Duration,
    #[command(flatten)]
    params: CommonArgs,
}

impl HintsArgs {
    pub(super) fn measure(self) -> Result<(), BenchError> {
        let bench = HintedReads {
            repeats: self.repeats.unwrap_or(if self.params.quick { 1 } else { 3 }),
            scan_cpu: self.scan_cpu,
            watch: self.watch,
        };
        self.params.measure("hints", |params| bench.run(params))
    }
}

/// A positive number of CPUs.
pub(super) fn cpus(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(cpus) if cpus > 0.0 && cpus <= 1024.0 => Ok(cpus),
        _ => Err("write a number of CPUs above 0, such as 0.2".to_owned()),
    }
}

impl SharingArgs {
    pub(super) fn measure(self) -> Result<(), BenchError> {
        let bench = self.bench();
        self.params.measure("sharing", |params| bench.run(params))
    }

    fn bench(&self) -> Sharing {
        let params = &self.params;
        let most = self.guests.unwrap_or(if params.quick { 4 } else { 10 });
        let usual = (1..=most).filter(|count| !params.quick || count.is_power_of_two() || *count == most);
        let mut counts = self.counts.clone();
        if counts.is_empty() {
            counts = usual.collect();
        }
        counts.sort_unstable();
        Sharing {
            counts,
            quiet: self.quiet,
            scan_cpu: self.scan_cpu,
            work: work(&self.work, params.images.no_disk),
        }
    }
}

/// What equal guests do, with data of their own.
fn work(asked: &[String], no_disk: bool) -> Vec<String> {
    let usual: &[&str] = match (asked.is_empty(), no_disk) {
        (false, _) => return asked.to_vec(),
        (true, true) => &["churn mib=32 seconds=10 seed={n}"],
        (true, false) => &[
            "pgbench seconds=5",
            "nginx files=16 seconds=5 seed={n}",
            "redis mib=8 seconds=5 seed={n}",
        ],
    };
    usual.iter().map(|&words| words.to_owned()).collect()
}
