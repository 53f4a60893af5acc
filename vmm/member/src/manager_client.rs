//! The guest's side of the link once it is admitted: reports, obeys, and finds the next manager.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use page_share::{Gfn, Pace, PageRun, Region, Release, SocketPort, Stats};

use super::introduction::{ConnectError, Introduction, Link, introduce};
use super::limit_thread::LimitThread;
use super::sampler::Sampler;
use super::{ManagedMemory, OwnThread};
use levy_protocol::frame_space::FrameSpace;
use levy_protocol::link::{
    BalloonReport, FromManager, FromVmm, Hello, Limits, Line, Orders, PageCounts, PoolSize, Report, now_us,
};
use levy_protocol::run_dir::Sockets;

/// Time between two reports.
const REPORT: Duration = Duration::from_secs(1);

/// Shortest and longest time between two attempts to find a manager that went away. Guests of one manager draw different
/// ones, so that they do not all come to the next one at once.
const RETRY: std::ops::Range<Duration> = Duration::from_millis(300)..Duration::from_millis(1300);

/// What of the orders is not done to memory: the rest of the VMM carries it out. Called on the client's thread, which
/// hears of no other order meanwhile.
pub trait Duties: Send {
    /// Asks the balloon for `pages`; nothing to do without one.
    fn balloon(&mut self, pages: u64) {
        let _ = pages;
    }
    /// How the balloon is doing; `None` without one.
    fn balloon_report(&self) -> Option<BalloonReport> {
        None
    }
    /// Whether its virtual CPUs stand still, for whatever reason.
    fn is_paused(&self) -> bool;
    /// Whether the guest is past its boot, so that its memory may be put under management. At once where a VMM does not
    /// say.
    fn is_up(&self) -> bool {
        true
    }
    /// Ends the guest.
    fn stop(&mut self);
    /// Ends the guest, which may take `grace` to switch itself off. A VMM that has a grace time of its own need not say.
    fn stop_within(&mut self, grace: Duration) {
        let _ = grace;
        self.stop();
    }
    /// Stops its virtual CPUs, or lets them run again.
    fn pause(&mut self, paused: bool);
}

/// The thread that speaks with the manager for one guest: for as long as its process lives, also where this is dropped, or
/// until it [leaves](Self::leave).
#[derive(Debug)]
pub struct ManagerClient {
    thread: JoinHandle<()>,
    leaving: Arc<AtomicBool>,
    region: Arc<Region>,
}

impl ManagerClient {
    /// Begins to report and obey for the guest of `managed`.
    ///
    /// # Errors
    /// When a guest that shares pages has memory at other frame numbers than guests of its size have
    /// ([`ConnectError::Frames`]), the page socket does not take it ([`ConnectError::Join`]), or the system refuses a thread
    /// or a descriptor ([`ConnectError::System`]).
    pub fn start(
        introduction: Introduction,
        managed: ManagedMemory,
        duties: Box<dyn Duties>,
    ) -> Result<Self, ConnectError> {
        let Introduction { sockets, hello, link } = introduction;
        let region = Arc::clone(managed.region());
        let threads = managed.threads;
        if matches!(hello.sharing, levy_protocol::link::Sharing::Domain(_)) {
            has_its_frames(hello.size, region.page_limit())?;
            let pages = sockets.pages.clone();
            let port = SocketPort::attach(region.page_limit(), move || UnixStream::connect(&pages))
                .map_err(ConnectError::Join)?;
            region.connect(Box::new(port)).map_err(ConnectError::Join)?;
        }
        let leaving = Arc::new(AtomicBool::new(false));
        let session = Session {
            limits: LimitThread::start(&region, hello.min, threads).map_err(ConnectError::System)?,
            managed,
            duties,
            orders: Orders::default(),
            sampler: Sampler::default(),
            report_due: Instant::now(),
            written: (Instant::now(), 0),
            hello,
            leaving: Arc::clone(&leaving),
        };
        let body = move || {
            threads.started(OwnThread::ManagerClient);
            session.run(link, &sockets);
        };
        let thread = thread::Builder::new()
            .name("manager-client".into())
            .stack_size(256 << 10)
            .spawn(body)
            .map_err(|e| ConnectError::System(levy_protocol::not_started(e)))?;
        Ok(Self {
            thread,
            leaving,
            region,
        })
    }

    /// Ends the management of a guest that has ended: this library's threads end, the connection is closed, and the
    /// guest's pages are given up, so that all of its memory reads zero. Takes two seconds at most.
    ///
    /// The region ends with the VMM's last clone of it; only then may the memory be unmapped. The manager counts what this
    /// process holds until it ends, and has the guest on its list as long: a process's word releases nothing.
    pub fn leave(self) {
        self.leaving.store(true, Ordering::SeqCst);
        let _ = self.thread.join();
        let all = PageRun::new(Gfn::new(0), self.region.page_limit());
        self.region.release(all, Release::Report);
        // The limit thread has ended, which granted credit.
        self.region.open_gate();
    }
}

/// Whether memory whose frame numbers end at `frames` is that of a guest of `size` bytes, as the manager has it.
fn has_its_frames(size: u64, frames: u32) -> Result<(), ConnectError> {
    let needed = FrameSpace::of_ram(size).map_or(0, FrameSpace::frames);
    match frames == needed {
        true => Ok(()),
        false => Err(ConnectError::Frames { size, frames, needed }),
    }
}

/// A time from `range`, by chance.
fn drawn(range: std::ops::Range<Duration>) -> Duration {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish();
    let part = (random >> 32) as f64 / f64::from(u32::MAX);
    range.start + (range.end - range.start).mul_f64(part)
}

/// What the client's thread works with, under one manager after the other.
struct Session {
    /// Before the memory, which is there until this thread has ended.
    limits: LimitThread,
    managed: ManagedMemory,
    duties: Box<dyn Duties>,
    orders: Orders,
    sampler: Sampler,
    report_due: Instant,
    /// When written pages were last counted, and the count.
    written: (Instant, u64),
    /// How the guest is introduced when a manager comes back.
    hello: Hello,
    /// The guest has ended.
    leaving: Arc<AtomicBool>,
}

impl Session {
    /// Reports to one manager after the other, and obeys it, until the guest leaves.
    fn run(mut self, mut link: Link, sockets: &Sockets) {
        while let Some(reason) = self.serve(link) {
            log::warn!("the manager is away ({reason}); its last limit holds, then what the guest has");
            self.alone();
            match self.find(sockets) {
                Some(found) => link = found,
                None => break,
            }
            log::info!("a manager is back");
        }
        self.sampler.forget(self.managed.region());
    }

    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// Looks for a manager until one takes the guest, or it leaves. One that refuses it may come to other thoughts, or be
    /// replaced.
    fn find(&mut self, sockets: &Sockets) -> Option<Link> {
        let mut said = None;
        loop {
            thread::sleep(drawn(RETRY));
            if self.is_leaving() {
                return None;
            }
            let stats = self.managed.region().stats();
            self.hello.pages = Some(counts(&stats));
            self.hello.swap = self.hello.swap.and(self.managed.swap_room(&stats));
            let error = match introduce(sockets, &self.hello) {
                Ok(link) => return Some(link),
                Err(error) => error,
            };
            let refused = matches!(error, ConnectError::Refused(_)).then(|| error.to_string());
            if refused.is_some() && refused != said {
                log::warn!("{error}; the guest keeps what it has, and asks again");
                said = refused;
            }
        }
    }

    /// Reports and obeys until the link breaks; says why it did. Nothing when the guest leaves.
    fn serve(&mut self, mut link: Link) -> Option<String> {
        match link.stream.try_clone() {
            Ok(stream) => self.limits.connect(stream),
            Err(error) => return Some(error.to_string()),
        }
        self.report_due = Instant::now();
        while !self.is_leaving() {
            match link.lines.next::<FromManager>(&mut &link.stream) {
                Ok(Line::Message(message)) => self.obey(&message),
                Ok(Line::Later | Line::Unknown) => {}
                Ok(Line::End) => return Some("it closed the connection".to_owned()),
                Err(error) => return Some(error.to_string()),
            }
            match self.duties.is_paused() {
                // The guest could not touch anything: that is not a sign of idleness.
                true => self.sampler.forget(self.managed.region()),
                false => self.sampler.tick(
                    self.managed.region(),
                    self.orders.sample_pages,
                    Duration::from_secs(u64::from(self.orders.sample_seconds.max(1))),
                ),
            }
            if Instant::now() >= self.report_due {
                self.report_due = Instant::now() + REPORT;
                let report = FromVmm::Report(self.report().in_version(link.version));
                match self.limits.outgoing().send(&report) {
                    Ok(()) => {}
                    // It stalls: it hears the next one, or is replaced, which closes the connection.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        self.hear_last_words(&mut link);
                        return Some(error.to_string());
                    }
                }
            }
        }
        None
    }

    /// A manager that closed the connection may have said something before: limits that were changed must not be lost.
    fn hear_last_words(&mut self, link: &mut Link) {
        while let Ok(Line::Message(message)) = link.lines.next::<FromManager>(&mut &link.stream) {
            self.obey(&message);
        }
    }

    /// No manager: the last limit and the minimum hold on, and nothing is sampled that is told to no manager.
    fn alone(&mut self) {
        self.limits.lose_manager();
        self.sampler.forget(self.managed.region());
        self.orders = Orders::default();
    }

    fn obey(&mut self, message: &FromManager) {
        match message {
            FromManager::Orders(orders) => self.follow(*orders),
            FromManager::Limits(limits) => self.adopt(limits),
            FromManager::Stop { grace_ms: None } => self.duties.stop(),
            FromManager::Stop { grace_ms: Some(ms) } => self.duties.stop_within(Duration::from_millis(*ms)),
            FromManager::Pause => self.duties.pause(true),
            FromManager::Resume => self.duties.pause(false),
            // The introduction is over; a manager that repeats it says nothing new.
            FromManager::Welcome(_) | FromManager::Refused { .. } => {}
        }
    }

    /// What was changed here must hold with the next manager too.
    fn adopt(&mut self, limits: &Limits) {
        self.hello.min = limits.min;
        self.limits.set_minimum(limits.min);
        self.hello.shares = limits.shares;
        self.hello.group.clone_from(&limits.group);
    }

    fn follow(&mut self, orders: Orders) {
        // First: a limit that was lowered has waited long enough, and what follows may take its time.
        self.limits.set_limit(orders.limit_bytes, orders.owed_bytes);
        // Every time: after a manager's return the last orders are not those that the balloon follows.
        self.duties.balloon(orders.balloon_pages);
        self.managed.set_pace(Pace {
            cpu_share: orders.scan_cpu.clamp(0.001, 1.0),
            pages_per_second: u32::try_from(orders.scan_pages_per_second)
                .unwrap_or(u32::MAX)
                .max(1),
        });
        if self.duties.is_up() {
            self.managed.split_blocks(orders.split_blocks);
        }
        self.limits
            .reclaimer()
            .obey(orders.compress_pages, orders.swap_pages);
        if orders.compress_pages > 0 || orders.swap_pages > 0 {
            // The manager plans no further reclaim on figures from before this one.
            self.report_due = Instant::now();
        }
        self.orders = orders;
    }

    fn report(&mut self) -> Report {
        let stats = self.managed.region().stats();
        let (then, before) = std::mem::replace(&mut self.written, (Instant::now(), stats.pages_written));
        let seconds = then.elapsed().as_secs_f64().max(0.001);
        Report {
            pages: counts(&stats),
            activity: self.sampler.activity(stats.samples_touched),
            balloon: self.duties.balloon_report(),
            cow_breaks: stats.cow_breaks,
            written_per_second: ((stats.pages_written - before) as f64 / seconds) as u64,
            // Neighbours came along unasked: no sign of need.
            pages_in: (stats.pages_decompressed + stats.pages_swapped_in)
                .saturating_sub(stats.neighbours_decompressed + stats.neighbours_swapped_in),
            store_bytes: stats.store_bytes,
            engine_cpu_us: (stats.handler_cpu_ns + stats.scan_cpu_ns) / 1000,
            paused: self.duties.is_paused(),
            old_pools: self.pools(),
            sent_us: now_us(),
            swap: self.managed.swap_room(&stats),
        }
    }

    /// All of them: which ones are of managers that are gone, the manager knows. The guest's process does not before it
    /// has connected its pages.
    fn pools(&self) -> Vec<PoolSize> {
        let pools = self.managed.region().pools();
        let described = |pool: page_share::PoolSize| PoolSize {
            id: pool.inode,
            bytes: pool.bytes,
        };
        pools.into_iter().map(described).collect()
    }
}

/// Pages by state, in the words of the link.
fn counts(stats: &Stats) -> PageCounts {
    PageCounts {
        private: stats.private + stats.broken + stats.huge + stats.sampled + stats.in_transit,
        shared: stats.shared,
        zero: stats.zero,
        compressed: stats.compressed,
        swapped: stats.swapped,
        ballooned: stats.ballooned,
        empty: stats.empty,
    }
}

#[cfg(test)]
mod tests;
