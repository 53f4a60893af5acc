//! A guest that leaves hangs up, and nothing of its management goes on.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, JoinHandle};

use levy_member::{
    Duties, Introduction, ManagedMemory, ManagerClient, Memory, PlainMemory, SharedReadBlocks,
};
use levy_protocol::link::Hello;
use levy_protocol::run_dir::Sockets;
use page_share::{AdoptError, AnonymousMemory, Gfn, Options, Region};

const PAGES: u32 = 16;

/// A guest that does nothing.
struct Idle;

impl Duties for Idle {
    fn is_paused(&self) -> bool {
        false
    }

    fn stop(&mut self) {}

    fn pause(&mut self, _: bool) {}
}

/// A manager that takes one guest and listens until that hangs up.
fn manager(dir: &Path) -> JoinHandle<()> {
    let listener = UnixListener::bind(Sockets::in_dir(dir).guests).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = BufReader::new(stream.try_clone().unwrap()).lines();
        assert!(heard.next().unwrap().unwrap().contains("\"hello\""));
        writeln!(stream, "{{\"type\":\"welcome\",\"rebalance_seconds\":15}}").unwrap();
        heard.for_each(drop);
    })
}

#[test]
fn a_guest_that_leaves_hangs_up_and_gives_its_pages_up() {
    let dir = tempfile::tempdir().unwrap();
    let manager = manager(dir.path());
    let ram = AnonymousMemory::new(PAGES).unwrap();
    let written = [0, 3, PAGES - 1];
    written.iter().for_each(|&page| ram.write_page(page, &[7; 4096]));
    let hello = Hello::new("g", u64::from(PAGES) * 4096);
    let introduction = Introduction::make(dir.path(), hello).unwrap();
    let memory = Arc::new(PlainMemory::new(vec![ram.range(Gfn::new(0))]));
    let managed = ManagedMemory::start(&memory, None).unwrap();
    let region = Arc::clone(managed.region());
    let client = ManagerClient::start(introduction, managed, Box::new(Idle)).unwrap();
    let all_read = |byte| written.iter().all(|&page| ram.read_page(page) == [byte; 4096]);
    assert!(all_read(7));
    client.leave();
    manager.join().unwrap();
    assert_eq!(Arc::strong_count(&region), 1, "no thread works on it any more");
    assert!(all_read(0));
}

/// Memory that says, when it is dropped, how many clones there are of the region over it.
#[derive(Debug)]
struct Told {
    memory: PlainMemory,
    region: Mutex<Weak<Region>>,
    dropped: Sender<usize>,
}

impl Memory for Told {
    fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn adopt(&self, options: Options) -> Result<Arc<Region>, AdoptError> {
        let region = self.memory.adopt(options)?;
        *self.region.lock().unwrap() = Arc::downgrade(&region);
        Ok(region)
    }

    fn shared_read_blocks(&self) -> &SharedReadBlocks {
        self.memory.shared_read_blocks()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let clones = self.region.lock().unwrap().strong_count();
        self.dropped.send(clones).unwrap();
    }
}

#[test]
fn the_memory_is_there_until_no_thread_works_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let manager = manager(dir.path());
    let ram = AnonymousMemory::new(PAGES).unwrap();
    let hello = Hello::new("g", u64::from(PAGES) * 4096);
    let introduction = Introduction::make(dir.path(), hello).unwrap();
    let (dropped, is_dropped) = channel();
    let memory = Told {
        memory: PlainMemory::new(vec![ram.range(Gfn::new(0))]),
        region: Mutex::default(),
        dropped,
    };
    let managed = ManagedMemory::start(&Arc::new(memory), None).unwrap();
    let client = ManagerClient::start(introduction, managed, Box::new(Idle)).unwrap();
    client.leave();
    manager.join().unwrap();
    assert_eq!(is_dropped.recv(), Ok(1), "the client's, which gives the pages up");
}
