//! A guest's process that speaks the protocol and has a little memory, and nothing else: a thousand of them fit a small
//! machine.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use levy_protocol::link::{
    Activity, FromManager, FromVmm, Hello, LimitStatus, Line, Lines, PageCounts, Report, now_us,
};
use levy_protocol::run_dir::Sockets;
use rustix::process::{Signal, set_parent_process_death_signal};

const MIB: u64 = 1 << 20;

/// Time between two reports.
const REPORT: Duration = Duration::from_secs(1);

/// Time between two words of a guest that waits for memory.
const WAITING: Duration = Duration::from_millis(100);

/// Time between two attempts to find the manager.
const RETRY: Duration = Duration::from_secs(1);

/// A guest that only talks.
#[derive(Debug, Clone, clap::Args)]
pub struct ProtocolOptions {
    /// Run directory of its manager.
    #[arg(long)]
    dir: PathBuf,
    /// Its name.
    #[arg(long)]
    name: String,
    /// Memory that it is said to have, MiB.
    #[arg(long, default_value_t = 8)]
    mib: u64,
    /// Memory that its process holds, MiB.
    #[arg(long, default_value_t = 1)]
    held_mib: u64,
    /// It waits for memory all the time.
    #[arg(long)]
    waits: bool,
    /// What it says after its introduction: a line as it is, or `hello` for that once more.
    #[arg(long)]
    says: Option<OsString>,
}

impl ProtocolOptions {
    /// Talks until its parent ends.
    pub(crate) fn run(&self) -> ExitCode {
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        let memory = vec![1_u8; (self.held_mib * MIB) as usize];
        std::hint::black_box(&memory);
        loop {
            // A connection that ends is not the last one.
            let _ = self.converse();
            std::thread::sleep(RETRY);
        }
    }

    fn converse(&self) -> io::Result<()> {
        let stream = UnixStream::connect(Sockets::in_dir(&self.dir).guests)?;
        let mut lines = Lines::default();
        Lines::send(&mut &stream, &FromVmm::Hello(self.hello()))?;
        if let Some(says) = &self.says {
            while !matches!(
                lines.next::<FromManager>(&mut &stream),
                Ok(Line::Message(FromManager::Welcome(_)))
            ) {}
            match says.as_bytes() {
                b"hello" => Lines::send(&mut &stream, &FromVmm::Hello(self.hello()))?,
                line => (&stream).write_all(&[line, b"\n"].concat())?,
            }
        }
        let (mut report_due, mut word_due) = (Instant::now(), Instant::now());
        loop {
            let now = Instant::now();
            if now >= report_due {
                report_due = now + REPORT;
                Lines::send(&mut &stream, &FromVmm::Report(self.report()))?;
            }
            if self.waits && now >= word_due {
                word_due = now + WAITING;
                Lines::send(&mut &stream, &FromVmm::LimitStatus(self.limit_status()))?;
            }
            let due = if self.waits {
                report_due.min(word_due)
            } else {
                report_due
            };
            let rest = due.saturating_duration_since(Instant::now());
            stream.set_read_timeout(Some(rest.max(Duration::from_millis(1))))?;
            match lines.next::<FromManager>(&mut &stream) {
                Ok(Line::End | Line::Message(FromManager::Refused { .. })) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
        }
    }

    fn hello(&self) -> Hello {
        Hello::new(&self.name, self.mib * MIB).with_min(4096)
    }

    fn report(&self) -> Report {
        let pages = |mib: u64| mib * MIB / 4096;
        Report {
            pages: PageCounts {
                private: pages(self.held_mib),
                empty: pages(self.mib - self.held_mib.min(self.mib)),
                ..PageCounts::default()
            },
            activity: Activity {
                periods: 1,
                last: (50, 100),
                running: (3, 100),
            },
            written_per_second: 10,
            sent_us: now_us(),
            ..Report::default()
        }
    }

    fn limit_status(&self) -> LimitStatus {
        LimitStatus {
            limit_bytes: Some((self.held_mib + 1) * MIB),
            gated: true,
            waiting: 1,
        }
    }
}
