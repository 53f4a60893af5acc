//! One guest of some size, and what its manager sees of it.

use std::fs::{self, File};
use std::ops::Range;
use std::process::Command;
use std::time::{Duration, Instant};

use allocator::GuestId;
use levy_launcher::{OneGuest, SessionFiles};
use levy_manager::host::Host;
use levy_member::{Inventory, Key};
use levy_protocol::control::Request;
use levy_protocol::link::{FromManager, LimitStatus, Orders, Report};
use levy_protocol::process_memory::Held;
use serde_json::Value;

use crate::kernel;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PAGE: u64 = 4096;

/// No wait is longer; one that gets there is a hang.
const PATIENCE: Duration = Duration::from_secs(90);
/// Where the hole for registers begins and ends.
const HOLE: Range<u64> = 3 << 30..4 << 30;
/// The kernel can reach an initrd below this address.
const INITRD_LIMIT: u64 = 2 << 30;
/// Memory that the guest's kernel touches at its beginning, and at its end.
const TOUCHED: (u64, u64) = (10 * MIB, 4 * MIB);
/// Memory that is like no other, and that which is there twice, in the initrd.
pub(crate) const UNLIKE: u64 = 2 * MIB;
pub(crate) const TWICE: u64 = MIB;

/// What a step that failed says.
pub(crate) type Failed = String;

/// A guest's process under the manager of the test.
pub(crate) struct Guest<'a> {
    host: &'a Host,
    session: OneGuest,
    dir: tempfile::TempDir,
    id: GuestId,
    key: Key,
    mib: u64,
}

impl<'a> Guest<'a> {
    /// Starts a guest of `mib` MiB whose manager `host` listens in `manager`.
    pub(crate) fn start(host: &'a Host, manager: &std::path::Path, mib: u64) -> Result<Self, Failed> {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        fs::write(file("bzImage"), kernel::touching(&touched(mib), mib << 32)).unwrap();
        fs::write(file("initrd"), initrd(mib)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_levy"));
        command
            .args([
                "vmm",
                "--kvm-checked",
                "--kernel",
                "bzImage",
                "--initrd",
                "initrd",
            ])
            .args(["--memory", &format!("size={mib}M,min=4M"), "--swap", "."])
            .args(["--name", &format!("g{mib}"), "--sharing", "mode=on,domain=sizes"])
            .arg("--manager")
            .arg(manager)
            .current_dir(dir.path())
            .stderr(File::create(file("stderr")).unwrap());
        let mut session = OneGuest::start(command, SessionFiles::numbered(dir.path(), 0)).unwrap();
        let running = session.running(PATIENCE);
        running.map_err(|error| format!("it does not start: {error}"))?;
        let id = admitted(host, &format!("g{mib}")).ok_or("it runs without its manager")?;
        Ok(Self {
            host,
            session,
            dir,
            id,
            key: Key::random().unwrap(),
            mib,
        })
    }

    /// Waits until what the manager knows is as `wanted`.
    pub(crate) fn until(
        &self,
        what: &str,
        wanted: impl Fn(&Report, &LimitStatus) -> bool,
    ) -> Result<(Report, LimitStatus), Failed> {
        let began = Instant::now();
        loop {
            let found = self.host.registry().guests().find_map(|(member, _)| {
                (member.id == self.id).then(|| (member.report.clone(), member.standing))
            });
            let Some((report, status)) = found else {
                return Err(self.failed(&format!("{what}: it is gone")));
            };
            if wanted(&report, &status) {
                return Ok((report, status));
            }
            if began.elapsed() > PATIENCE {
                return Err(self.failed(&format!("{what} did not happen: {:?}, {status:?}", report.pages)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Gives it orders that hold until the next ones.
    pub(crate) fn order(&self, orders: Orders) -> Result<(), Failed> {
        match self.host.tell(self.id, &FromManager::Orders(orders)) {
            true => Ok(()),
            false => Err(self.failed("it takes no orders")),
        }
    }

    /// Bytes that its process holds, as the budget counts them.
    pub(crate) fn held(&self) -> Result<u64, Failed> {
        let held = Held::of(self.session.pid());
        held.map(Held::total)
            .map_err(|_| self.failed("its process has ended"))
    }

    /// Waits until its kernel has touched all that it will.
    pub(crate) fn touched(&self) -> Result<(), Failed> {
        let began = Instant::now();
        let last = touched(self.mib).last().map_or(0, |range| frames(range).end - 1);
        while self.contents_of(last..last + 1)?[0].is_none() {
            if began.elapsed() > PATIENCE {
                return Err(self.failed("its kernel did not touch its last page"));
            }
        }
        Ok(())
    }

    /// What is in every page that was ever touched on purpose, by name.
    pub(crate) fn contents(&self) -> Result<Vec<Option<u128>>, Failed> {
        let mut all = Vec::new();
        for range in touched(self.mib).into_iter().chain([initrd_place(self.mib)]) {
            all.extend(self.contents_of(frames(&range))?);
        }
        Ok(all)
    }

    fn contents_of(&self, frames: Range<u32>) -> Result<Vec<Option<u128>>, Failed> {
        self.ask(&Request::Pause)?;
        let (mut names, mut first) = (Vec::new(), frames.start);
        while first < frames.end {
            let request = Request::Inventory {
                key: self.key.to_text(),
                first,
                pages: frames.end - first,
            };
            let answer: Inventory = serde_json::from_value(self.ask(&request)?).unwrap();
            let pages = answer.pages().unwrap();
            first += pages.len() as u32;
            names.extend(pages.into_iter().map(|(_, name)| name));
        }
        self.ask(&Request::Resume)?;
        Ok(names)
    }

    /// Ends it; its exit status.
    pub(crate) fn stop(mut self) -> Result<i32, Failed> {
        self.ask(&Request::Stop { grace_ms: 0 })?;
        let status = self
            .session
            .end(PATIENCE)
            .map_err(|error| self.failed(&error.to_string()))?;
        Ok(status.code().unwrap_or(-1))
    }

    fn ask(&self, request: &Request) -> Result<Value, Failed> {
        let answer = self.session.ask_within(PATIENCE, request);
        answer.map_err(|error| self.failed(&format!("{request:?}: {}", levy_protocol::error_chain(&error))))
    }

    fn failed(&self, what: &str) -> Failed {
        let said = fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
        format!("{what}; it said: {said:?}")
    }
}

fn admitted(host: &Host, name: &str) -> Option<GuestId> {
    let registry = host.registry();
    let mut guests = registry.guests();
    guests.find_map(|(member, process)| (process.name == name).then_some(member.id))
}

fn frames(addresses: &Range<u64>) -> Range<u32> {
    (addresses.start / PAGE) as u32..(addresses.end / PAGE) as u32
}

/// The last range of RAM.
fn last_range(mib: u64) -> Range<u64> {
    match (mib * MIB).checked_sub(HOLE.start) {
        None | Some(0) => 0..mib * MIB,
        Some(above) => HOLE.end..HOLE.end + above,
    }
}

/// What its kernel touches: something near its beginning, and its end, unless the initrd is there.
fn touched(mib: u64) -> Vec<Range<u64>> {
    let last = last_range(mib);
    let beginning = 16 * MIB..16 * MIB + TOUCHED.0;
    let end = last.start.max(last.end - TOUCHED.1)..last.end;
    match last.end <= INITRD_LIMIT {
        true => Vec::from([beginning]),
        false => vec![beginning, end],
    }
}

/// Where the VMM puts the initrd: as high as it fits.
fn initrd_place(mib: u64) -> Range<u64> {
    let end = (mib * MIB).min(INITRD_LIMIT);
    end - UNLIKE - 2 * TWICE..end
}

/// Bytes that no compression makes smaller: some of this guest alone, and some that every guest has, twice.
fn initrd(mib: u64) -> Vec<u8> {
    let mut bytes = noise(mib, UNLIKE);
    for _ in 0..2 {
        bytes.extend(noise(0, TWICE));
    }
    bytes
}

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let words = (0..len / 8).map(|word| {
        let mixed = (seed << 40 | word)
            .wrapping_add(1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed ^ mixed >> 32
    });
    words.flat_map(u64::to_le_bytes).collect()
}
