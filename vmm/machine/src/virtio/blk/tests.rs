//! The block device under an honest driver, a hostile one, and a host that fails.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use page_share::{Options, Region};

use super::*;
use crate::memory::GuestRam;
use crate::virtio::testing::{
    BUFFERS, Driver, HOSTILE, INDIRECT, MEMORY, NEXT, WRITE, desc, survive_hostile_rings,
};

const SECTORS: u64 = 64;
const HEADER: u64 = BUFFERS + 0x1_0000;
const STATUS: u64 = HEADER + 16;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

/// Bytes that tell every place of a disk apart.
fn pattern(len: u64) -> Vec<u8> {
    (0..len).map(|at| (at / 512 * 7 + at) as u8).collect()
}

fn image(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("disk.img");
    std::fs::write(&path, pattern(SECTORS * 512)).unwrap();
    path
}

fn raw(dir: &Path) -> Block {
    Block::new(
        Box::new(RawDisk::open(&image(dir), Access::Exclusive).unwrap()),
        "disk0",
    )
}

fn driver(block: Block) -> (Driver, Arc<Mutex<Block>>) {
    let block = Arc::new(Mutex::new(block));
    (Driver::start(Arc::clone(&block) as _), block)
}

/// Sends a request with `data` bytes in the data buffer at [`BUFFERS`]; the status byte.
fn request(driver: &mut Driver, kind: u32, sector: u64, data: u32) -> u8 {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    driver.put(HEADER, &header);
    driver.put(STATUS, &[0xEE]);
    let flags = if kind == OUT { NEXT } else { NEXT | WRITE };
    let mut chain = vec![desc(HEADER, 16, NEXT, 1), desc(BUFFERS, data, flags, 2)];
    if data == 0 {
        chain[0].next = 2;
    }
    chain.push(desc(STATUS, 1, WRITE, 0));
    driver.describe(0, 0, &chain);
    driver.complete(0, 0);
    driver.get(STATUS, 1)[0]
}

#[test]
fn what_is_written_is_read_back_and_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (mut driver, block) = driver(raw(dir.path()));
    driver.put(BUFFERS, &[0x5A; 1024]);
    assert_eq!(request(&mut driver, OUT, 3, 1024), 0);
    driver.put(BUFFERS, &[0; 1024]);
    assert_eq!(request(&mut driver, IN, 3, 1024), 0);
    assert_eq!(driver.get(BUFFERS, 1024), [0x5A; 1024]);
    assert_eq!(request(&mut driver, FLUSH, 0, 0), 0);
    assert_eq!(request(&mut driver, GET_ID, 0, 20), 0);
    assert_eq!(&driver.get(BUFFERS, 6), b"disk0\0");
    let file = std::fs::read(dir.path().join("disk.img")).unwrap();
    let mut expected = pattern(SECTORS * 512);
    expected[3 * 512..5 * 512].fill(0x5A);
    assert_eq!(file, expected);
    let stats = block.lock().unwrap().stats();
    assert_eq!(
        (stats.reads, stats.read_bytes, stats.writes, stats.written_bytes),
        (1, 1024, 1, 1024)
    );
}

#[test]
fn the_driver_sees_the_disks_size() {
    let dir = tempfile::tempdir().unwrap();
    let (driver, _) = driver(raw(dir.path()));
    assert_eq!((driver.read(0x100), driver.read(0x104)), (SECTORS as u32, 0));
    let mut beyond = [0xAA; 8];
    driver.mmio.read(0x100 + 4096, &mut beyond);
    assert_eq!(beyond, [0; 8]);
}

#[test]
fn requests_for_what_the_disk_does_not_have_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut driver, block) = driver(raw(dir.path()));
    const IO_ERROR: u8 = 1;
    const UNSUPPORTED: u8 = 2;
    for (kind, sector, data, status) in [
        (IN, SECTORS, 512, IO_ERROR),
        (IN, SECTORS - 1, 1024, IO_ERROR),
        (OUT, SECTORS, 512, IO_ERROR),
        (IN, u64::MAX, 512, IO_ERROR),
        (OUT, u64::MAX / 512, 512, IO_ERROR),
        (IN, 0, 100, IO_ERROR),
        (11, 0, 512, UNSUPPORTED),
        (u32::MAX, 0, 0, UNSUPPORTED),
    ] {
        assert_eq!(
            request(&mut driver, kind, sector, data),
            status,
            "{kind} {sector} {data}"
        );
    }
    assert_eq!(block.lock().unwrap().stats().refused, 8);
    assert_eq!(
        std::fs::read(dir.path().join("disk.img")).unwrap(),
        pattern(SECTORS * 512)
    );
    assert!(!driver.needs_reset());
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RawDisk::open(&image(dir.path()), Access::Shared).unwrap();
    let (mut driver, _) = driver(Block::new(Box::new(disk), "ro").read_only());
    driver.write(0x14, 0);
    assert_eq!(driver.read(0x10) & 1 << 5, 1 << 5, "VIRTIO_BLK_F_RO is offered");
    assert_eq!(request(&mut driver, OUT, 0, 512), 1);
    assert_eq!(request(&mut driver, IN, 0, 512), 0);
    assert_eq!(driver.get(BUFFERS, 512), pattern(512));
}

#[test]
fn requests_in_an_indirect_table_work() {
    let dir = tempfile::tempdir().unwrap();
    let (mut driver, _) = driver(raw(dir.path()));
    driver.put(HEADER, &[0; 16]);
    let table = BUFFERS + 0x2_0000;
    driver.describe_at(
        table,
        &[
            desc(HEADER, 16, NEXT, 1),
            desc(BUFFERS, 512, NEXT | WRITE, 2),
            desc(STATUS, 1, WRITE, 0),
        ],
    );
    driver.describe(0, 5, &[desc(table, 48, INDIRECT, 0)]);
    assert_eq!(driver.complete(0, 5), 513);
    assert_eq!(driver.get(BUFFERS, 512), pattern(512));
}

#[test]
fn hostile_rings_stop_the_disk_until_its_reset_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (mut driver, _) = driver(raw(dir.path()));
    survive_hostile_rings(&mut driver, 0, |driver| {
        assert_eq!(request(driver, IN, 1, 512), 0);
        assert_eq!(driver.get(BUFFERS, 512), pattern(1024)[512..]);
    });
    assert_eq!(driver.mmio.plug().stats().needs_reset, HOSTILE.len() as u64);
}

#[test]
fn chains_without_room_for_header_or_status_stop_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (mut driver, _) = driver(raw(dir.path()));
    let cases: [&[crate::virtio::testing::Desc]; 3] = [
        &[desc(HEADER, 15, NEXT, 1), desc(STATUS, 1, WRITE, 0)],
        &[desc(HEADER, 16, 0, 0)],
        &[desc(HEADER, 16, NEXT, 1), desc(STATUS, 0, WRITE, 0)],
    ];
    for (times, chain) in (1..).zip(cases) {
        driver.bring_up();
        driver.describe(0, 0, chain);
        driver.offer(0, 0);
        driver.kick(0);
        driver.expect_needs_reset(times);
        assert_eq!(driver.used(0), [(0, 0)]);
    }
}

/// A disk whose host is full, or gone.
struct Broken;

impl Disk for Broken {
    fn len(&self) -> u64 {
        SECTORS * 512
    }

    fn read(&mut self, _into: &mut [u8], _at: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }

    fn write(&mut self, _from: &[u8], _at: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
}

#[test]
fn a_failing_host_is_an_io_error_for_the_guest_and_a_count_for_the_host() {
    let (mut driver, block) = driver(Block::new(Box::new(Broken), "broken"));
    for (kind, data) in [(IN, 512), (OUT, 512), (FLUSH, 0)] {
        assert_eq!(request(&mut driver, kind, 0, data), 1);
    }
    assert_eq!(block.lock().unwrap().stats().host_errors, 3);
    assert!(!driver.needs_reset());
}

/// What `work` returns on a thread whose calls of fsync, fdatasync and sync_file_range fail as on a dying disk.
fn where_nothing_can_be_synced<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let calls = [
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_sync_file_range,
        libc::SYS_syncfs,
    ];
    let failing = SeccompFilter::new(
        calls.into_iter().map(|call| (call, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EIO as u32),
        seccompiler::TargetArch::x86_64,
    );
    let failing: BpfProgram = failing.unwrap().try_into().unwrap();
    let thread = std::thread::spawn(move || {
        seccompiler::apply_filter(&failing).unwrap();
        work()
    });
    thread.join().unwrap()
}

#[test]
fn a_flush_of_a_raw_disk_reaches_the_medium_and_its_failure_the_guest() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = RawDisk::open(&image(dir.path()), Access::Exclusive).unwrap();
    disk.write(&[1; 512], 0).unwrap();
    disk.flush().unwrap();
    let (flushed, read) = where_nothing_can_be_synced(move || {
        disk.write(&[2; 512], 0).unwrap();
        (disk.flush(), disk.read(&mut [0; 512], 0))
    });
    assert_eq!(flushed.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(read.is_ok(), "nothing else fails there");
}

#[test]
fn an_overlay_reads_through_and_keeps_writes_from_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let base = image(dir.path());
    let mut disk = OverlayDisk::open(&base, dir.path()).unwrap();
    // A plain array is the oracle for what the guest must see.
    let mut oracle = pattern(SECTORS * 512);
    let writes = [
        (0u64, 512usize),
        (4096, 4096),
        (4096 * 2 + 512, 4096 * 2),
        (SECTORS * 512 - 512, 512),
        (100 * 40, 512),
    ];
    for (n, (at, len)) in (1u8..).zip(writes) {
        let bytes = vec![n; len];
        disk.write(&bytes, at).unwrap();
        oracle[at as usize..at as usize + len].copy_from_slice(&bytes);
        let mut seen = vec![0; oracle.len()];
        disk.read(&mut seen, 0).unwrap();
        assert!(seen == oracle, "after write {n}");
    }
    assert_eq!(std::fs::read(&base).unwrap(), pattern(SECTORS * 512));
    // The layer has no name: nothing to clean up.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_kept_layer_is_found_again_by_the_next_process_and_by_no_other_image() {
    let dir = tempfile::tempdir().unwrap();
    let base = image(dir.path());
    let layer = dir.path().join("layer");
    std::fs::write(&layer, b"").unwrap();
    let mut oracle = pattern(SECTORS * 512);
    for round in 1_u8..4 {
        // Dropped without a word at the end of each round, as when its process is killed.
        let mut disk = OverlayDisk::over_layer(&base, &layer).unwrap();
        let mut seen = vec![0; oracle.len()];
        disk.read(&mut seen, 0).unwrap();
        assert!(seen == oracle, "at the start of round {round}");
        for (at, len) in [(u64::from(round) * 4096 + 512, 5000), (SECTORS * 512 - 512, 512)] {
            disk.write(&vec![round; len], at).unwrap();
            oracle[at as usize..at as usize + len].fill(round);
        }
        let error = OverlayDisk::over_layer(&base, &layer).unwrap_err().to_string();
        assert!(error.contains("another guest uses it"), "{error}");
    }
    assert_eq!(std::fs::read(&base).unwrap(), pattern(SECTORS * 512));
    let other = dir.path().join("other.img");
    std::fs::write(&other, pattern(SECTORS * 1024)).unwrap();
    let message = |layer: &Path| OverlayDisk::over_layer(&other, layer).unwrap_err().to_string();
    assert!(
        message(&layer).contains("is not a layer of it"),
        "{}",
        message(&layer)
    );
    assert!(message(&base).contains("is not a layer of it"));
    assert!(message(&dir.path().join("none")).contains("none"));
}

#[test]
fn one_writer_or_many_readers() {
    let dir = tempfile::tempdir().unwrap();
    let base = image(dir.path());
    let shared = (
        OverlayDisk::open(&base, dir.path()).unwrap(),
        RawDisk::open(&base, Access::Shared).unwrap(),
    );
    let error = RawDisk::open(&base, Access::Exclusive).unwrap_err().to_string();
    assert!(
        error.contains("in use by another guest") && error.contains("overlay=on"),
        "{error}"
    );
    drop(shared);
    let writer = RawDisk::open(&base, Access::Exclusive).unwrap();
    assert!(matches!(
        OverlayDisk::open(&base, dir.path()),
        Err(DiskError::InUse { .. })
    ));
    drop(writer);
}

#[test]
fn files_that_are_no_images_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let message = |path: &Path| RawDisk::open(path, Access::Shared).unwrap_err().to_string();
    assert!(message(&dir.path().join("none")).contains("none: cannot open it for reading"));
    assert!(message(&file("empty", b"")).contains("0 bytes are not a positive number of 512-byte sectors"));
    assert!(message(&file("odd", &[0; 513])).contains("513 bytes"));
    let mut qcow = vec![0; 512];
    qcow[..4].copy_from_slice(b"QFI\xFB");
    assert!(message(&file("qcow", &qcow)).contains("a qcow2 image; give a raw image"));
    assert!(message(dir.path()).contains("neither a file nor a block device"));
}

#[test]
fn latency_is_added_to_each_request() {
    let dir = tempfile::tempdir().unwrap();
    let delay = std::time::Duration::from_millis(20);
    let (mut driver, _) = driver(raw(dir.path()).with_latency(delay));
    let begin = std::time::Instant::now();
    for _ in 0..3 {
        request(&mut driver, IN, 0, 512);
    }
    assert!(begin.elapsed() >= delay * 3);
}

#[test]
fn whole_blocks_of_a_shared_image_are_told_of_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let overlay = OverlayDisk::open(&image(dir.path()), dir.path()).unwrap();
    let ram = Arc::new(GuestRam::new(MEMORY).unwrap());
    let ranges = ram.ranges().unwrap();
    ram.manage(|| Region::adopt(ranges, Options::default())).unwrap();
    let mut block = Block::new(Box::new(overlay), "disk0");
    block.tell_of_common_reads(Arc::clone(&ram));
    let mut driver = Driver::start_with(Arc::new(Mutex::new(block)), Arc::clone(&ram));
    let mut told_by = |kind, sector, len| {
        let before = ram.shared_read_blocks().told();
        assert_eq!(request(&mut driver, kind, sector, len), 0);
        ram.shared_read_blocks().told() - before
    };
    assert_eq!(told_by(IN, 0, 4096), 1);
    assert_eq!(told_by(IN, 8, 3 * 4096), 3);
    assert_eq!(told_by(IN, 8, 4096 + 512), 1, "the rest is no whole page");
    assert_eq!(told_by(IN, 1, 4096), 0, "half of one block and half of the next");
    assert_eq!(told_by(IN, 0, 512), 0);
    assert_eq!(told_by(OUT, 8, 512), 0);
    assert_eq!(
        told_by(IN, 0, 4 * 4096),
        3,
        "the second block is the guest's own by now"
    );
}

/// A disk without end, that counts the reads it is asked for.
struct Endless(Arc<AtomicU32>);

impl Disk for Endless {
    fn len(&self) -> u64 {
        1 << 40
    }

    fn read(&mut self, into: &mut [u8], _at: u64) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        into.fill(7);
        Ok(())
    }

    fn write(&mut self, _from: &[u8], _at: u64) -> io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn endless() -> (Driver, Arc<Mutex<Block>>, Arc<AtomicU32>) {
    let reads = Arc::new(AtomicU32::new(0));
    let (driver, block) = driver(Block::new(Box::new(Endless(Arc::clone(&reads))), "disk0"));
    driver.put(HEADER, &[0; 16]);
    (driver, block, reads)
}

#[test]
fn one_kick_with_much_to_do_is_many_turns() {
    let (mut driver, _block, _reads) = endless();
    let data = desc(MEMORY / 2, 2 << 20, NEXT | WRITE, 2);
    let request = [desc(HEADER, 16, NEXT, 1), data, desc(STATUS, 1, WRITE, 0)];
    driver.describe_at(STATUS + 16, &request);
    let kicks = driver.mmio.plug().stats().kicks;
    for head in 0..8 {
        driver.describe(0, head, &[desc(STATUS + 16, 48, INDIRECT, 0)]);
        driver.offer(0, head);
    }
    driver.kick(0);
    driver.wait_for("all requests", |driver| driver.used(0).len() == 8);
    // The lock is let go at 4 MiB, and the thread comes back by itself for the rest of the 16.
    driver.wait_for("the turns", |driver| {
        driver.mmio.plug().stats().kicks - kicks >= 4
    });
}

#[test]
fn a_request_that_no_honest_driver_sends_is_refused_unread() {
    let (mut driver, block, reads) = endless();
    let (size_max, segments) = (driver.read(0x108), driver.read(0x10C));
    let most = u64::from(size_max) * u64::from(segments);
    assert_eq!(most, 126 * (64 << 10));
    let mut chain = vec![desc(HEADER, 16, NEXT, 1)];
    chain.extend((2..7).map(|next| desc(MEMORY / 2, 2 << 20, NEXT | WRITE, next)));
    chain.push(desc(STATUS, 1, WRITE, 0));
    driver.describe(0, 0, &chain);
    driver.complete(0, 0);
    assert_eq!(driver.get(STATUS, 1), [1]);
    assert_eq!(
        (
            reads.load(Ordering::SeqCst),
            block.lock().unwrap().stats().refused
        ),
        (0, 1)
    );
}

#[test]
fn figures_are_there_while_the_disk_is_at_work() {
    let (_driver, block, _reads) = endless();
    let held = block.lock().unwrap();
    let figures = held.figures();
    let asked = std::thread::spawn(move || figures.get());
    assert_eq!(asked.join().unwrap(), BlockStats::default());
    drop(held);
}
