//! Every kind of memory, judged by the pages that are resident afterwards, not by return codes.
#![allow(unsafe_code)]
// UNSAFETY: residency is asked from the kernel (mincore), and the page-share case maps memory over memory.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use balloon_driver::driver::{Driver, Line};
use balloon_driver::features::QueueKind;
use balloon_driver::release::{Anonymous, Hugetlb, Memfd, Reason, Release, Released};
use balloon_driver::{Balloon, FRAME_SIZE, Frame, Options, Run};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

type Memory = Arc<GuestMemoryMmap>;

/// Where the memory under test starts; the driver's rings are below, in memory of their own.
const BASE: u64 = 1 << 30;
const FRAMES: u64 = 4096;
const FIRST: u64 = BASE / FRAME_SIZE;

fn run(first: u64, count: u64) -> Run {
    Run::new(Frame::new(FIRST + first), count).unwrap()
}

fn memfd(name: &CStr, flags: u32, bytes: u64) -> std::io::Result<File> {
    // SAFETY: the name is a C string; the descriptor is new and has no other owner.
    let file = unsafe {
        let fd = libc::memfd_create(name.as_ptr(), flags);
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.set_len(bytes)?;
    Ok(file)
}

/// Guest memory whose main region is mapped with `flags`, from `file` where there is one.
fn region(flags: i32, file: Option<File>) -> std::io::Result<GuestRegionMmap> {
    let mut builder = MmapRegionBuilder::new((FRAMES * FRAME_SIZE) as usize)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags);
    if let Some(file) = file {
        builder = builder.with_file_offset(FileOffset::new(file, 0));
    }
    let mapping = builder
        .build()
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(GuestRegionMmap::new(mapping, GuestAddress(BASE)).unwrap())
}

fn memory(region: GuestRegionMmap) -> Memory {
    Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap())
}

fn anonymous() -> Memory {
    let memory = memory(
        region(
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            None,
        )
        .unwrap(),
    );
    // Whole huge pages would be resident where one byte was touched.
    // SAFETY: advice about pages that stay mapped while `memory` lives.
    let done = unsafe {
        libc::madvise(
            host(&memory, 0).cast(),
            (FRAMES * FRAME_SIZE) as usize,
            libc::MADV_NOHUGEPAGE,
        )
    };
    assert_eq!(done, 0);
    memory
}

fn host(memory: &Memory, frame: u64) -> *mut u8 {
    use vm_memory::GuestMemoryBackend;
    memory
        .get_host_address(GuestAddress(BASE + frame * FRAME_SIZE))
        .unwrap()
}

/// Which frames have a page, by the kernel's account.
fn resident(memory: &Memory) -> Vec<u64> {
    let mut pages = vec![0u8; FRAMES as usize];
    // SAFETY: one byte for each page of the mapping.
    let done = unsafe {
        libc::mincore(
            host(memory, 0).cast(),
            (FRAMES * FRAME_SIZE) as usize,
            pages.as_mut_ptr(),
        )
    };
    assert_eq!(done, 0);
    (0..FRAMES)
        .filter(|&frame| pages[frame as usize] & 1 != 0)
        .collect()
}

fn fill(memory: &Memory) {
    for frame in 0..FRAMES {
        memory
            .write_obj(frame | 1 << 63, GuestAddress(BASE + frame * FRAME_SIZE))
            .unwrap();
    }
    assert_eq!(resident(memory).len() as u64, FRAMES);
}

/// Released frames read zero, the others what was written.
fn assert_contents(memory: &Memory, released: &[Run]) {
    for frame in 0..FRAMES {
        let gone = released
            .iter()
            .any(|run| run.overlap(self::run(frame, 1)).is_some());
        let found: u64 = memory.read_obj(GuestAddress(BASE + frame * FRAME_SIZE)).unwrap();
        assert_eq!(found, if gone { 0 } else { frame | 1 << 63 }, "frame {frame}");
    }
}

/// Single pages, a long run, and both ends.
fn runs() -> Vec<Run> {
    (0..600)
        .map(|at| run(2 * at, 1))
        .chain([run(1300, 700), run(4095, 1)])
        .collect()
}

fn assert_releases(port: &mut impl Release, memory: &Memory) {
    let runs = runs();
    fill(memory);
    let released = port.release(&runs, Reason::Inflated);
    let expected: u64 = runs.iter().map(|run| run.count()).sum();
    assert_eq!(
        (released.frames, released.failed),
        (expected, 0),
        "{:?}",
        released.error
    );
    let left = resident(memory);
    assert_eq!(left.len() as u64, FRAMES - expected, "pages are back at the host");
    assert!(
        left.iter()
            .all(|&frame| runs.iter().all(|run| run.overlap(self::run(frame, 1)).is_none()))
    );
    assert_contents(memory, &runs);
}

#[test]
fn anonymous_pages_leave_the_process() {
    let memory = anonymous();
    assert_releases(&mut Anonymous::new(memory.clone()).unwrap(), &memory);
    assert_releases(
        &mut Anonymous::new(memory.clone()).unwrap().without_vectored_calls(),
        &memory,
    );
}

/// Kills this process when this thread makes a vectored call.
fn forbid_vectored_calls() {
    let step = |code: u32, jf, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            1,
            libc::SYS_process_madvise as u32,
        ),
        step(libc::BPF_RET, 0, libc::SECCOMP_RET_KILL_PROCESS),
        step(libc::BPF_RET, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the program outlives the call that copies it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let filter = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, filter, &raw const program), 0);
    }
}

#[test]
fn without_vectored_calls_a_filter_that_kills_on_them_has_no_reason_to() {
    // A thread of its own: filters stay.
    let releasing = std::thread::spawn(|| {
        let memory = anonymous();
        let mut port = Anonymous::new(memory.clone()).unwrap().without_vectored_calls();
        forbid_vectored_calls();
        assert_releases(&mut port, &memory);
    });
    releasing.join().unwrap();
}

#[test]
fn a_page_the_kernel_keeps_is_counted() {
    let memory = anonymous();
    fill(&memory);
    // Locked pages cannot be dropped; one of three runs is locked.
    // SAFETY: a lock on a mapped page.
    let locked = unsafe { libc::mlock(host(&memory, 10).cast(), FRAME_SIZE as usize) };
    assert_eq!(locked, 0);
    for mut port in [
        Anonymous::new(memory.clone()).unwrap(),
        Anonymous::new(memory.clone()).unwrap().without_vectored_calls(),
    ] {
        let released = port.release(&[run(5, 1), run(10, 1), run(20, 2)], Reason::Inflated);
        assert_eq!((released.frames, released.failed), (3, 1));
        assert!(released.error.is_some());
        let left = resident(&memory);
        assert!(left.contains(&10) && ![5, 20, 21].iter().any(|frame| left.contains(frame)));
    }
}

#[test]
fn memfd_pages_leave_the_file() {
    let file = memfd(c"guest", libc::MFD_CLOEXEC, FRAMES * FRAME_SIZE).unwrap();
    let memory = memory(region(libc::MAP_SHARED, Some(file.try_clone().unwrap())).unwrap());
    assert_releases(&mut Memfd::new(memory.clone()).unwrap(), &memory);
    // Reading a hole of a shared mapping fills it again, so count once more before anything is read.
    let mut port = Memfd::new(memory.clone()).unwrap();
    fill(&memory);
    let before = file.metadata().unwrap().blocks();
    port.release(&[run(0, 1000)], Reason::Reported);
    assert_eq!(
        before - file.metadata().unwrap().blocks(),
        1000 * FRAME_SIZE / 512
    );
}

#[test]
fn a_hole_that_the_kernel_refuses_is_counted() {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let file = memfd(c"guest", flags, FRAMES * FRAME_SIZE).unwrap();
    let memory = memory(region(libc::MAP_SHARED, Some(file.try_clone().unwrap())).unwrap());
    fill(&memory);
    // What is mapped stays writable; the file itself cannot be changed any more.
    // SAFETY: a call on a descriptor of ours.
    let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_FUTURE_WRITE) };
    assert_eq!(sealed, 0);
    let mut port = Memfd::new(memory.clone()).unwrap();
    let released = port.release(&[run(5, 2), run(20, 1)], Reason::Inflated);
    assert_eq!((released.frames, released.failed), (0, 3));
    assert!(released.error.is_some());
    assert_contents(&memory, &[]);
}

#[test]
fn each_port_refuses_memory_it_would_get_wrong() {
    let file = || memfd(c"guest", libc::MFD_CLOEXEC, FRAMES * FRAME_SIZE).unwrap();
    let private_file = memory(region(libc::MAP_PRIVATE, Some(file())).unwrap());
    let shared_file = memory(region(libc::MAP_SHARED, Some(file())).unwrap());
    // The file's bytes would come back instead of zeros; and a hole leaves private copies where they are.
    assert!(Anonymous::new(private_file.clone()).is_err());
    assert!(Memfd::new(private_file).is_err());
    assert!(Anonymous::new(shared_file).is_err());
    assert!(Memfd::new(anonymous()).is_err());
    assert!(Hugetlb::new(anonymous(), 2 << 20).is_err());
}

/// Memory as a page-sharing engine has it: some runs are private mappings of a pool of common copies. Releasing one
/// means mapping anonymous memory over it, because `MADV_DONTNEED` brings the pool's bytes back.
struct SharedRegion {
    memory: Memory,
    shared: Vec<Run>,
    rest: Anonymous,
    /// How many frames the engine believes to be in the balloon.
    ballooned: u64,
}

impl Release for SharedRegion {
    fn backed(&self) -> Vec<Run> {
        self.rest.backed()
    }

    fn release(&mut self, runs: &[Run], reason: Reason) -> Released {
        let broken: Vec<Run> = runs
            .iter()
            .flat_map(|run| self.shared.iter().filter_map(|shared| run.overlap(*shared)))
            .collect();
        for run in &broken {
            map_anonymous(&self.memory, *run);
        }
        self.shared
            .retain(|shared| broken.iter().all(|run| run.overlap(*shared).is_none()));
        self.ballooned += if reason == Reason::Inflated {
            runs.iter().map(|run| run.count()).sum()
        } else {
            0
        };
        self.rest.release(runs, reason)
    }

    fn take_back(&mut self, runs: &[Run]) {
        self.ballooned -= runs.iter().map(|run| run.count()).sum::<u64>();
    }
}

fn map(memory: &Memory, run: Run, flags: i32, fd: i32) {
    let at = host(memory, run.first().number() - FIRST);
    // SAFETY: replaces pages inside a mapping that lives as long as `memory`.
    let place = unsafe {
        libc::mmap(
            at.cast(),
            (run.count() * FRAME_SIZE) as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | flags,
            fd,
            0,
        )
    };
    assert_eq!(place, at.cast());
}

fn map_anonymous(memory: &Memory, run: Run) {
    map(memory, run, libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1);
}

/// A merged page: 16 frames from `at` on show the pool's bytes.
fn share(memory: &Memory, pool: &File, at: u64) -> Run {
    let shared = run(at, 16);
    map(memory, shared, 0, pool.as_raw_fd());
    shared
}

#[test]
fn a_merged_page_that_is_ballooned_or_reported_reads_zero_when_it_returns() {
    let pool = memfd(c"pool", libc::MFD_CLOEXEC, 16 * FRAME_SIZE).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&pool, &[0xab; 16 * FRAME_SIZE as usize], 0).unwrap();
    let memory = anonymous();
    let pool_word = u64::from_le_bytes([0xab; 8]);
    let word = |at: u64| {
        memory
            .read_obj::<u64>(GuestAddress(BASE + at * FRAME_SIZE))
            .unwrap()
    };

    // What goes wrong without the port: the pool's bytes come back.
    share(&memory, &pool, 64);
    Anonymous::new(memory.clone())
        .unwrap()
        .release(&[run(64, 16)], Reason::Inflated);
    assert_eq!(word(64), pool_word);

    let shared = vec![share(&memory, &pool, 128), share(&memory, &pool, 256)];
    assert_eq!((word(128), word(271)), (pool_word, pool_word));
    let rest = Anonymous::new(memory.clone()).unwrap();
    let port = SharedRegion {
        memory: memory.clone(),
        shared,
        rest,
        ballooned: 0,
    };
    let rings: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap());
    // Two memories here only because the port and the rings are tested apart; a VMM has one.
    let mut device = Balloon::new(Options::default(), port);
    let features = device.features();
    let mut driver = Driver::new(rings.clone(), GuestAddress(0), features).unwrap();
    let _ = device
        .activate(
            features,
            rings,
            driver.queues().unwrap(),
            Arc::new(Line::default()),
        )
        .unwrap();

    let frames: Vec<u32> = (128..144).rev().map(|at| (FIRST + at) as u32).collect();
    let sent = driver.send_frames(QueueKind::Inflate, &frames).unwrap();
    assert!(device.handle_queue_event(sent.queue).is_ok());
    assert_eq!((word(128), word(143)), (0, 0), "ballooned");
    // A report is not in memory of the rings, but it is memory of the guest.
    let sent = driver.send_report(&[run(256, 16)]).unwrap();
    assert!(device.handle_queue_event(sent.queue).is_ok());
    assert_eq!((word(256), word(271)), (0, 0), "reported");
    assert_eq!((device.counters().released, device.ballooned()), (32, 16));
    let sent = driver.send_frames(QueueKind::Deflate, &frames).unwrap();
    assert!(device.handle_queue_event(sent.queue).is_ok());
    assert_eq!(device.ballooned(), 0);
}

/// Memory with huge pages of hugetlbfs, or the reason why there is none.
fn hugetlb() -> Result<(File, Memory), String> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    let file =
        memfd(c"huge", flags, FRAMES * FRAME_SIZE).map_err(|error| format!("no hugetlb memfd: {error}"))?;
    let region = region(libc::MAP_SHARED, Some(file.try_clone().unwrap()))
        .map_err(|error| format!("no free 2 MiB pages ({error}); set vm.nr_hugepages=8"))?;
    Ok((file, memory(region)))
}

#[test]
fn a_huge_page_goes_when_the_last_of_its_frames_is_in_the_balloon() {
    let (file, memory) = match hugetlb() {
        Ok(found) => found,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let rings: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap());
    let mut device = Balloon::new(Options::default(), Hugetlb::new(memory.clone(), 2 << 20).unwrap());
    let features = device.features();
    let mut driver = Driver::new(rings.clone(), GuestAddress(0), features).unwrap();
    let _ = device
        .activate(
            features,
            rings,
            driver.queues().unwrap(),
            Arc::new(Line::default()),
        )
        .unwrap();
    fill(&memory);
    let huge_pages = || file.metadata().unwrap().blocks() * 512 / (2 << 20);
    assert_eq!(huge_pages(), 8);
    let mut send = |device: &mut Balloon<Memory, Hugetlb>, frames: &[u32]| {
        let sent = driver.send_frames(QueueKind::Inflate, frames).unwrap();
        assert!(device.handle_queue_event(sent.queue).is_ok());
        driver.reap(QueueKind::Inflate).unwrap();
    };
    // The second huge page, but for its last frame, then the last one.
    let frames: Vec<u32> = (512..1023).map(|at| (FIRST + at) as u32).collect();
    for buffer in frames.chunks(256) {
        send(&mut device, buffer);
    }
    assert_eq!(
        (huge_pages(), device.counters().released, device.ballooned()),
        (8, 0, 511)
    );
    assert_eq!(device.counters().kept_for_unit, 511);
    send(&mut device, &[(FIRST + 1023) as u32]);
    assert_eq!(
        (huge_pages(), device.counters().released, device.ballooned()),
        (7, 512, 512)
    );
    // A report that covers one huge page and parts of its neighbours.
    let sent = driver.send_report(&[run(2000, 700)]).unwrap();
    assert!(device.handle_queue_event(sent.queue).is_ok());
    assert_eq!((huge_pages(), device.counters().released), (6, 1024));
    assert_contents(&memory, &[run(512, 512), run(2048, 512)]);
}

#[test]
fn memory_that_is_not_made_of_whole_frames_is_refused_by_its_address() {
    for (address, len) in [(0x800, 0x4000), (0x1000, 0x4200), (0x800, 0x3800)] {
        let ranges = [(GuestAddress(address), len), (GuestAddress(0x10_0000), 0x1000)];
        let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
        let text = format!("{}", Anonymous::new(memory).err().expect("a refusal"));
        assert!(
            text.contains(&format!("{address:#x}")) && text.contains(&format!("{len:#x}")),
            "{text}"
        );
    }
}
