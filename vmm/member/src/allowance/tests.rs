//! A keeper over memory of this process.

use page_share::{AnonymousMemory, Gfn};

use super::*;
use crate::squeezer::Squeezer;
use crate::{ManagedMemory, PlainMemory};

const MIB: u64 = 1 << 20;

/// Memory with a keeper; the first goes last.
struct Kept {
    allowance: Allowance,
    swapper: Arc<Swapper>,
    _managed: ManagedMemory,
    _ram: AnonymousMemory,
    _dir: tempfile::TempDir,
}

/// `mib` MiB in which no page is like another one, of a guest that was promised `minimum` of them.
fn kept(mib: u64, minimum: u64) -> Kept {
    let ram = AnonymousMemory::new((mib * MIB / PAGE) as u32).unwrap();
    for page in 1..=mib * MIB / PAGE {
        let words = (0..512_u64).flat_map(|word| {
            (page << 20 | word)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .to_le_bytes()
        });
        let bytes: Vec<u8> = words.collect();
        ram.write_page((page - 1) as u32, bytes.as_slice().try_into().unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let memory = Arc::new(PlainMemory::new(vec![ram.range(Gfn::new(0))]));
    let managed = ManagedMemory::start(&memory, Some(dir.path().to_owned())).unwrap();
    managed.region().split_blocks(u32::MAX);
    let swapper = Arc::new(Swapper::new(Arc::clone(managed.region())));
    Kept {
        allowance: Allowance::start(&swapper, minimum * MIB, Threads::default()).unwrap(),
        swapper,
        _managed: managed,
        _ram: ram,
        _dir: dir,
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(
            began.elapsed() < Duration::from_secs(300),
            "{what} did not happen"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_was_promised_stays_whatever_the_limit() {
    let kept = kept(16, 8);
    let away = || {
        let stats = kept.allowance.0.region.stats();
        (stats.compressed + stats.swapped) * PAGE
    };
    // This process holds far more.
    kept.allowance.set(Some(MIB), 0);
    until("squeezed to its minimum", || {
        away() > 0 && kept.allowance.spare() == 0
    });
    // Longer than many looks.
    thread::sleep(Duration::from_millis(300));
    assert!(away() <= 8 * MIB + 8 * MIB / 64, "{} bytes away", away());
    // A lower promise is all there is now.
    kept.allowance.promise(4 * MIB);
    until("squeezed to its new minimum", || {
        away() > 11 * MIB && kept.allowance.spare() == 0
    });
    assert!(away() <= 12 * MIB + 4 * MIB / 64, "{} bytes away", away());
}

/// Memory of which 4 MiB and a little are to spare, known to be cold, and a way to squeeze it.
fn cold() -> (Kept, Squeezer) {
    let kept = kept(16, 12);
    let squeezer = Squeezer::new(kept.allowance.clone(), Arc::clone(&kept.swapper));
    kept.allowance.set(Some(1 << 40), 0);
    until("a look", || kept.allowance.0.held.load(Ordering::SeqCst) > 0);
    let region = &kept.allowance.0.region;
    until("cold", || {
        region.scan_pass();
        region.cold_pages(4096).iter().map(|run| run.count).sum::<u32>() == 4096
    });
    (kept, squeezer)
}

/// Some pages are in the swap file, and no more than `most`.
fn assert_swapped(kept: &Kept, most: u64) {
    let swapped = kept.allowance.0.region.stats().swapped;
    assert!(swapped > 0 && swapped <= most, "{swapped} swapped");
}

#[test]
fn an_order_to_compress_and_swap_leaves_the_minimum() {
    let (kept, squeezer) = cold();
    let spare = kept.allowance.spare();
    assert!((1024..1200).contains(&spare), "{spare} pages to spare");
    // None of them compresses.
    squeezer.squeeze(1000, 1000);
    assert_swapped(&kept, spare);
}

#[test]
fn two_that_squeeze_at_once_leave_the_minimum() {
    let (kept, squeezer) = cold();
    let spare = kept.allowance.spare();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| squeezer.squeeze(0, 1000));
        }
    });
    assert_swapped(&kept, spare);
}

#[test]
fn the_largest_limit_of_all_is_like_any_other() {
    let kept = kept(4, 4);
    let is_gated = || kept.allowance.0.gated.load(Ordering::SeqCst);
    kept.allowance.set(Some(MIB), 0);
    until("gated", is_gated);
    kept.allowance.set(Some(u64::MAX), 0);
    until("free", || !is_gated());
    kept.allowance.promise(u64::MAX);
    let mut keeper = Keeper::new(kept.allowance.clone(), Arc::clone(&kept.swapper)).unwrap();
    keeper.overdue = true;
    assert_eq!(keeper.with_overdue(MIB, 100 * MIB), u64::MAX);
}

#[test]
fn a_gate_that_holds_nothing_back_opens_at_once_every_time() {
    let kept = kept(4, 4);
    let is_gated = || kept.allowance.0.gated.load(Ordering::SeqCst);
    // On a busy machine a round may take its time for other reasons.
    let mut at_once = 0;
    for _ in 0..12 {
        kept.allowance.set(Some(MIB), 0);
        until("gated", is_gated);
        let started = Instant::now();
        kept.allowance.set(Some(1 << 40), 0);
        until("free", || !is_gated());
        at_once = if started.elapsed() < CALM { at_once + 1 } else { 0 };
        if at_once == 3 {
            return;
        }
    }
    panic!("the gate never opened at once three times in a row");
}

#[test]
fn a_gate_opens_early_for_ample_room_but_not_twice_in_a_row() {
    let second = Duration::from_secs(1);
    let long_ago = CALM + second;
    assert!(is_safe(AMPLE, Duration::ZERO, None));
    assert!(is_safe(AMPLE, Duration::ZERO, Some(long_ago)));
    assert!(!is_safe(AMPLE, second, Some(second)));
    assert!(!is_safe(PLENTY, second, None));
    assert!(is_safe(PLENTY, long_ago, Some(second)));
    assert!(!is_safe(PLENTY - 1, long_ago, None));
}

#[test]
fn a_manager_that_reads_nothing_keeps_nothing_waiting() {
    let kept = kept(4, 4);
    let (here, manager) = UnixStream::pair().unwrap();
    let standing = FromVmm::LimitStatus(LimitStatus::default());
    let say = || kept.allowance.say(&standing).map_err(|error| error.kind());
    assert_eq!(say(), Err(io::ErrorKind::NotConnected));
    kept.allowance.speak_to(here);
    // Far more than any socket holds: were this to wait, it would wait for ever.
    let last = (0..1_000_000).map(|_| say()).find(Result::is_err);
    assert_eq!(last, Some(Err(io::ErrorKind::WouldBlock)));
    // What it was told is whole lines, and it can be told more once it reads.
    let (mut lines, mut read) = (Lines::default(), 0);
    manager.set_nonblocking(true).unwrap();
    while let Ok(levy_protocol::link::Line::Message(message)) = lines.next::<FromVmm>(&mut &manager) {
        assert!(matches!(message, FromVmm::LimitStatus(_)));
        read += 1;
    }
    assert!(read > 10, "{read} lines");
    assert_eq!(say(), Ok(()));
    drop(manager);
    assert!(say().is_err());
    kept.allowance.lose_manager();
    assert_eq!(say(), Err(io::ErrorKind::NotConnected));
}

#[test]
fn a_limit_holds_without_the_manager_that_set_it() {
    let kept = kept(8, 2);
    let away = || kept.allowance.0.region.stats().compressed + kept.allowance.0.region.stats().swapped;
    let held = || kept.allowance.0.held.load(Ordering::SeqCst);
    kept.allowance.set(Some(1 << 40), 0);
    until("a look", || held() > 0);
    // Other tests of this process come and go: far below what any of them leaves.
    kept.allowance.set(Some(MIB), 0);
    until("squeezed", || away() > 0);
    kept.allowance.lose_manager();
    let is_gated = || kept.allowance.0.gated.load(Ordering::SeqCst);
    until("squeezed to the minimum", || kept.allowance.spare() == 0);
    assert!(is_gated(), "no manager is there to lift the limit");
}
