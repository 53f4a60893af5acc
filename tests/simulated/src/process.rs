//! The inside of a guest's process: says a line of JSON about itself every so often, and obeys words on its input.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use levy_machine::memory::GuestRam;
use levy_member::{Duties, Introduction, ManagedMemory, ManagerClient};
use levy_protocol::link::{Hello, VERSION};
use page_share::Region;

use crate::guest::{Said, Status};
use crate::options::GuestOptions;
use crate::writers::Work;

/// Time between two lines.
const TELL: Duration = Duration::from_millis(100);

/// Without a balloon: its memory is compressed and swapped instead.
struct NoDevices {
    work: Arc<Work>,
    paused: AtomicBool,
}

impl Duties for NoDevices {
    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    fn stop(&mut self) {
        std::process::exit(0);
    }

    fn pause(&mut self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
        self.work.still.store(paused, Ordering::SeqCst);
    }
}

/// Runs until it is told to end, or the process that started it is gone.
pub(crate) fn run(options: &GuestOptions) -> ExitCode {
    match start(options) {
        Ok((work, region)) => {
            let (told, of) = (Arc::clone(&work), Arc::clone(&region));
            std::thread::spawn(move || {
                loop {
                    tell(&Said::Status(status(&told, &of)));
                    std::thread::sleep(TELL);
                }
            });
            obey(&work);
            ExitCode::SUCCESS
        }
        Err(error) => {
            tell(&Said::Failed(levy_protocol::error_chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn start(options: &GuestOptions) -> Result<(Arc<Work>, Arc<Region>), Box<dyn std::error::Error>> {
    let hello = Hello::new(&options.name, options.mib << 20).with_min(options.min_mib << 20);
    let hello = Hello {
        version: options.protocol,
        ..hello.in_domain(&options.domain)
    };
    let introduction = match options.protocol < VERSION {
        true => Introduction::make(&options.dir, hello),
        false => Introduction::make_swapping(&options.dir, hello, &options.swap),
    }?;
    if options.locked {
        rustix::mm::mlockall(rustix::mm::MlockAllFlags::FUTURE)?;
    }
    let ram = Arc::new(GuestRam::new(options.mib << 20)?);
    let pages = options.pages();
    if !options.late_fill {
        pages.fill(&ram);
    }
    let managed = ManagedMemory::start(&ram, Some(options.swap.clone()))?;
    let region = Arc::clone(managed.region());
    let work = Work::new(Arc::clone(&ram), pages, options.writers);
    let duties = NoDevices {
        work: Arc::clone(&work),
        paused: AtomicBool::new(false),
    };
    ManagerClient::start(introduction, managed, Box::new(duties))?;
    if options.late_fill {
        pages.fill(&ram);
    }
    work.start(options.rate);
    Ok((work, region))
}

/// A word on a line: `check`, `still`, `go`. Ends with the input.
fn obey(work: &Work) {
    for line in io::stdin().lines().map_while(Result::ok) {
        match line.as_str() {
            "check" => tell(&Said::Checked {
                wrong: work.check(),
                pages: work.pages.count,
            }),
            "still" => work.still.store(true, Ordering::SeqCst),
            "go" => work.still.store(false, Ordering::SeqCst),
            other => tell(&Said::Failed(format!("{other:?} is no command"))),
        }
    }
}

fn status(work: &Work, region: &Region) -> Status {
    let stats = region.stats();
    Status {
        writes: work.writes.load(Ordering::Relaxed),
        wrong: work.wrong.load(Ordering::SeqCst),
        private: stats.private + stats.broken + stats.huge + stats.sampled + stats.in_transit,
        shared: stats.shared,
        zero: stats.zero,
        merged: stats.pages_merged,
        compressed: stats.compressed,
        store_bytes: stats.store_bytes,
        swapped: stats.swapped,
        lost: stats.pages_lost,
        old_pools: region.pools().len().saturating_sub(1) as u64,
    }
}

fn tell(said: &Said) {
    let line = serde_json::to_string(said).expect("plain data");
    // The parent has closed its end: it no longer needs this process.
    if writeln!(io::stdout().lock(), "{line}").is_err() {
        std::process::exit(0);
    }
}
