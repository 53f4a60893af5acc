//! A manager that has too few descriptors left for a connection for pages. Alone in its process, whose descriptors it
//! counts.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use allocator::Pages;
use levy_manager::host::{Host, Sockets};
use levy_manager::policy::Settings;
use levy_protocol::link::{FromManager, FromVmm, Hello, Line, Lines};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const PATIENCE: Duration = Duration::from_secs(60);

/// What accepting a connection takes, and watching the process at its other end.
const TAKEN: usize = 2;

#[test]
fn a_connection_for_pages_that_the_system_refuses_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let sockets = Sockets::in_dir(dir.path());
    let settings = Settings::new(Pages::from_mib(256));
    let host = Host::open(sockets.clone(), settings, Pages::from_mib(4096)).unwrap();
    let guest = UnixStream::connect(&sockets.guests).unwrap();
    let hello = Hello::new("g", 64 << 20).with_min(16 << 20).in_domain("web");
    Lines::send(&mut &guest, &FromVmm::Hello(hello)).unwrap();
    let welcome = Lines::default().next::<FromManager>(&mut &guest);
    assert!(matches!(welcome, Ok(Line::Message(FromManager::Welcome(_)))));
    let pages = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let limit = getrlimit(Resource::Nofile);
    let lower = Rlimit {
        current: Some(256),
        ..limit
    };
    setrlimit(Resource::Nofile, lower).unwrap();
    let mut all: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    all.truncate(all.len() - TAKEN);
    connect(&pages, &SocketAddrUnix::new(&sockets.pages).unwrap()).unwrap();
    let mut pages = UnixStream::from(pages);
    pages.set_read_timeout(Some(PATIENCE)).unwrap();
    let ended = pages.read(&mut [0]);
    drop(all);
    setrlimit(Resource::Nofile, limit).unwrap();
    assert!(matches!(ended, Ok(0)), "{ended:?}");
    let began = Instant::now();
    while host.counters().starved == 0 {
        assert!(began.elapsed() < PATIENCE, "{:?}", host.counters());
        std::thread::sleep(Duration::from_millis(5));
    }
    host.close();
}
