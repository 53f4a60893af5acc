//! Sockets of a guest's process in strange hands: shut under it, or speaking on after its death.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use page_share::port::{Answer, Report};
use page_share::wire::{Direction, HEADER, Header, Reply, Request};
use page_share::{Gfn, PoolGeneration, Sketch, Slot};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use levy_bench::Random;

/// How long the manager may take to answer a thief.
const PATIENCE: Duration = Duration::from_millis(300);

/// Common copies, and pages of a guest, that a thief tries its luck with.
const SLOTS: u32 = 256;

/// Which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Reports and orders.
    Guests,
    /// Shared pages.
    Pages,
}

/// Copies of a process's connections to its manager.
#[derive(Debug)]
pub(crate) struct Loot(Vec<(Door, UnixStream)>);

impl Loot {
    /// Takes them from process `pid`, which goes on without noticing.
    pub(crate) fn take(pid: Pid) -> io::Result<Self> {
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let mut taken = Vec::new();
        for file in std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()))?.flatten() {
            let is_socket =
                std::fs::read_link(file.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
            let number = file.file_name().to_string_lossy().parse::<i32>();
            let (true, Ok(number)) = (is_socket, number) else {
                continue;
            };
            let Ok(copy) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else {
                continue;
            };
            let stream = UnixStream::from(copy);
            if let Some(door) = door(&stream) {
                taken.push((door, stream));
            }
        }
        Ok(Self(taken))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Ends the connections at `door` under the process; how many there were.
    pub(crate) fn shut(&self, door: Door) -> usize {
        let those = self.0.iter().filter(|(at, _)| *at == door);
        those
            .map(|(_, stream)| stream.shutdown(std::net::Shutdown::Both))
            .filter(Result::is_ok)
            .count()
    }

    /// Says what a dead guest could have said, and what none would; how many words were taken, and how many answered.
    /// Only for loot of the dead: the copies are the process's own sockets, time-outs included.
    pub(crate) fn speak(&self, random: &mut Random) -> (u64, u64) {
        let (mut taken, mut answered) = (0, 0);
        for (door, stream) in &self.0 {
            let _ = stream.set_write_timeout(Some(PATIENCE));
            let _ = stream.set_read_timeout(Some(PATIENCE));
            match door {
                Door::Guests => {
                    for word in words(random) {
                        taken += u64::from((&mut &*stream).write_all(word.as_bytes()).is_ok());
                    }
                }
                Door::Pages => {
                    let (said, heard) = forge(stream, random);
                    taken += said;
                    answered += heard;
                }
            }
        }
        (taken, answered)
    }
}

/// The door that a connection leads to.
fn door(stream: &UnixStream) -> Option<Door> {
    let peer = stream.peer_addr().ok()?;
    match peer.as_pathname()?.file_name()?.to_str()? {
        "guests.sock" => Some(Door::Guests),
        "pages.sock" => Some(Door::Pages),
        _ => None,
    }
}

/// Lines for the manager's ears: a limit that it never gave, and accesses that wait for more.
pub(crate) fn words(random: &mut Random) -> [String; 2] {
    let limit = 1_u64 << random.within(20..=40);
    let standing = format!(
        "{{\"type\":\"standing\",\"limit_bytes\":{limit},\"gated\":true,\"waiting\":{}}}\n",
        random.within(0..=9)
    );
    [standing.clone(), standing]
}

/// Requests about pages: those that the dead one had, or another guest has by now, are given up in its name.
fn forge(stream: &UnixStream, random: &mut Random) -> (u64, u64) {
    let mut thief = Thief {
        stream,
        said: 0,
        answered: 0,
    };
    let _ = thief.forge(random);
    (thief.said, thief.answered)
}

struct Thief<'a> {
    stream: &'a UnixStream,
    said: u64,
    answered: u64,
}

impl Thief<'_> {
    /// Everything that it knows; none where the manager stops to listen.
    fn forge(&mut self, random: &mut Random) -> Option<()> {
        let slots: Vec<Slot> = (0..SLOTS).map(Slot::new).collect();
        let gfns: Vec<Gfn> = (0..SLOTS).map(Gfn::new).collect();
        // The answer to a pool that there is not names the one that there is.
        let unknown = PoolGeneration::new(random.number() | 1);
        let PoolReply::Stale(current) = self.ask(&Request::Claim(unknown, slots.as_slice().into()))? else {
            return Some(());
        };
        self.ask(&Request::Offers)?;
        let reports = gfns.iter().map(|&gfn| Report {
            gfn,
            sketch: Sketch::new(random.number()),
        });
        let reports: Vec<Report> = reports.collect();
        self.ask(&Request::Report(reports.into()))?;
        self.ask(&Request::Withdraw(gfns.as_slice().into()))?;
        // What is claimed can be given up once, by right; after that, what the guest of this number has.
        let PoolReply::Shared(granted) = self.ask(&Request::Claim(current, slots.as_slice().into()))? else {
            return Some(());
        };
        for _ in 0..2 {
            for slot in &granted {
                self.ask(&Request::Release(current, std::slice::from_ref(slot).into()))?;
            }
        }
        Some(())
    }

    /// One request and its answer.
    fn ask(&mut self, request: &Request<'_>) -> Option<PoolReply> {
        let mut stream = self.stream;
        self.said += 1;
        let mut out = Vec::new();
        request.encode(&mut out);
        stream.write_all(&out).ok()?;
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).ok()?;
        let header = Header::parse(header, Direction::Reply).ok()?;
        let mut payload = vec![0; header.length()];
        stream.read_exact(&mut payload).ok()?;
        let heard = match Reply::decode(header, &payload).ok()? {
            Reply::Stale(_, session) => PoolReply::Stale(session),
            Reply::Answers(answers) => {
                let shared = answers.iter().filter_map(|answer| match answer {
                    Answer::Shared(slot) => Some(*slot),
                    _ => None,
                });
                PoolReply::Shared(shared.collect())
            }
            _ => PoolReply::Something,
        };
        self.answered += 1;
        Some(heard)
    }
}

enum PoolReply {
    Stale(PoolGeneration),
    Shared(Vec<Slot>),
    Something,
}
