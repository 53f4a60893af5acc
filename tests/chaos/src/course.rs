//! A fleet's life, from its first manager to what it leaves.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::fleet::{Fleet, PATIENCE, Setting, Swap};
use crate::memory;
use crate::quota::Quota;
use crate::tally::Breach;

/// How long a fleet may take to settle between two things that are done to it, where it is let.
const REST: Duration = Duration::from_secs(20);

/// Threads of a manager without guests.
const IDLE_THREADS: usize = 10;

/// Descriptors of a manager without guests.
const IDLE_DESCRIPTORS: usize = 40;

/// Runs one fleet until its quota is met, or `until`.
pub(crate) fn run(number: usize, setting: &Setting, quota: Quota, until: Instant) -> anyhow::Result<()> {
    let mut fleet = Fleet::start(number, setting)?;
    fleet.start_manager()?;
    for place in 0..fleet.guests.len() {
        fleet.later.start_guest(place, Duration::from_millis(500));
    }
    fleet.live_until(PATIENCE, |fleet| fleet.is_settled())?;
    fleet.disorder(quota, until)?;
    if !fleet.is_interrupted() {
        fleet.come_to_rest()?;
        fleet.end()?;
    }
    Ok(())
}

impl Fleet {
    /// Does one thing after the other.
    fn disorder(&mut self, mut quota: Quota, until: Instant) -> anyhow::Result<()> {
        while !quota.is_done() && Instant::now() < until && !self.is_interrupted() {
            let action = quota.choose(&mut self.random);
            if self.perform(action)? {
                quota.note(action);
            }
            let gap = self.random.millis(200..=2_000);
            self.live(gap)?;
            if self.random.one_of(1, 4) {
                self.live_until(REST, |fleet| fleet.is_settled())?;
            }
            let now = self.clock.now();
            let place = self.random.place(self.guests.len());
            let checked = self.guests[place].life.as_mut();
            if let Some(life) = checked.filter(|life| life.is_free()) {
                life.check(now);
            }
        }
        if !quota.is_done() && !self.is_interrupted() {
            self.witness.tally.add("quota_left", quota.kills + quota.stalls);
        }
        Ok(())
    }

    /// Every guest is there, nothing is short, and every page is right.
    fn come_to_rest(&mut self) -> anyhow::Result<()> {
        // What was put off still happens.
        self.live_until(PATIENCE, |fleet| fleet.later.is_empty())?;
        self.ease();
        self.settle()?;
        let ample = self.budget.ample_mib() << 20;
        self.manager.set_budget(ample);
        let now = self.clock.now();
        for life in self.guests.iter_mut().filter_map(|guest| guest.life.as_mut()) {
            life.has_checked();
            life.check(now);
        }
        let checked = self.live_until(PATIENCE, |fleet| {
            let lives = fleet.guests.iter_mut().filter_map(|guest| guest.life.as_mut());
            lives
                .filter_map(|life| (!life.has_checked()).then_some(()))
                .count()
                == 0
        })?;
        if !checked && !self.is_interrupted() {
            self.witness
                .breach(Breach::Stuck, 1, "not all guests got through the last check");
        }
        self.tally.count("fleets_at_rest");
        self.live(Duration::from_secs(5))
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        let settled = self.live_until(PATIENCE, |fleet| fleet.is_settled())?;
        if !settled && !self.is_interrupted() {
            let state = |guest: &crate::guest::Guest| {
                let life = guest.life.as_ref();
                life.map(|life| (guest.kind.name.clone(), life.runs(), life.back))
            };
            let states: Vec<_> = self.guests.iter().map(state).collect();
            let manager = self.manager.life.as_ref().map(|rule| rule.sound);
            let what = format!("the fleet does not come to rest: manager {manager:?}, {states:?}");
            self.witness.breach(Breach::Stuck, 1, &what);
        }
        Ok(())
    }

    /// Guests end, then the manager, and nothing of them is left.
    fn end(&mut self) -> anyhow::Result<()> {
        for guest in &mut self.guests {
            if let Some(mut life) = guest.life.take() {
                life.process.kill();
            }
        }
        let Some(pid) = self.manager.life.as_ref().map(|rule| rule.process.id()) else {
            return Ok(());
        };
        let idle = |fleet: &mut Self| {
            let empty = fleet.manager.ask().is_ok_and(|view| {
                view.host.guests == 0 && view.host.domains.is_empty() && view.host.spent.pools_bytes == 0
            });
            empty && memory::threads(pid) <= IDLE_THREADS && memory::descriptors(pid) <= IDLE_DESCRIPTORS
        };
        if !self.live_until(Duration::from_secs(30), idle)? && !self.is_interrupted() {
            let what = format!(
                "without guests the manager has {} threads, {} descriptors, {:?}",
                memory::threads(pid),
                memory::descriptors(pid),
                self.manager.ask().map(|view| view.host)
            );
            self.witness.breach(Breach::LeftBehind, 1, &what);
        }
        let Some(mut rule) = self.manager.life.take() else {
            return Ok(());
        };
        rule.process.interrupt();
        let mut ended = None;
        self.live_until(Duration::from_secs(20), |_| {
            ended = rule.process.ended().ok().flatten();
            ended.is_some()
        })?;
        if !ended.is_some_and(|status| status.success()) {
            let threads = memory::whereabouts(rule.process.id());
            let what = format!("the last manager, told to end: {ended:?}; its threads:\n{threads}");
            self.witness.breach(Breach::Abort, 1, &what);
        }
        self.look_for_leavings();
        Ok(())
    }

    /// Sockets, swap files and control groups without an owner.
    fn look_for_leavings(&self) {
        let mut left = Vec::new();
        let entries = |dir: &std::path::Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries(self.dir.path()) {
            use std::os::unix::fs::FileTypeExt;
            if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
                left.push(entry.path());
            }
        }
        left.extend(entries(self.swap.path()).map(|entry| entry.path()));
        if let Swap::Own(disk) = &self.swap
            && disk.used_kib() > 0
        {
            left.push(PathBuf::from(format!(
                "{} KiB in files without names",
                disk.used_kib()
            )));
        }
        for &(pid, started) in &self.rulers {
            let group = PathBuf::from(format!("/sys/fs/cgroup/pids/levy-test-{pid}"));
            left.extend(group.exists().then_some(group));
            let process = PathBuf::from(format!("/proc/{pid}"));
            left.extend((start_time(pid) == started && is_ours(&process)).then_some(process));
        }
        self.tally.count("fleets_looked_over");
        if !left.is_empty() {
            let what = format!("left: {left:?}");
            self.witness.breach(Breach::LeftBehind, left.len() as u64, &what);
        }
    }
}

/// When a process started, in the kernel's clock ticks. Its number alone is soon that of another fleet's process.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Whether a process is there that this one started.
fn is_ours(process: &std::path::Path) -> bool {
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.is_some_and(|parent| parent.trim() == std::process::id().to_string())
}
