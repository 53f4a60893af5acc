//! Every program does what it says, and every control works, on plain memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ring3::{Error, Guest, Memory, PAGE, Program, Work};

const LIMIT: Duration = Duration::from_secs(30);

/// A guest over `pages` pages of plain memory, or a reported skip.
fn guest(test: &str, pages: u32, work: &[Work]) -> Option<(Arc<Memory>, Guest)> {
    if let Err(reason) = ring3::available() {
        ring3::skip(test, &reason);
        return None;
    }
    let memory = Arc::new(Memory::anonymous(pages as usize * PAGE).unwrap());
    let guest = Guest::new(&memory, work).unwrap();
    Some((memory, guest))
}

#[test]
fn fill_writes_every_word_of_its_pages_and_no_other() {
    let program = Program::Fill {
        value: 100,
        stride: 3,
        rounds: 1,
    };
    let work = Work {
        program,
        ..Work::fill(1..7, 0)
    };
    let Some((memory, guest)) = guest("fill", 8, &[work]) else {
        return;
    };
    guest.start();
    assert_eq!(guest.wait_done(LIMIT).unwrap()[0].writes, 6);
    for page in 0..8 {
        let want = if (1..7).contains(&page) {
            100 + 3 * page as u64
        } else {
            0
        };
        for word in 0..PAGE / 8 {
            assert_eq!(
                memory.read(page * PAGE + word * 8),
                want,
                "page {page} word {word}"
            );
        }
    }
}

#[test]
fn a_reader_writes_nothing_and_a_writer_writes_its_pages_only() {
    let work = [Work::access(0..512, 0), Work::access(512..600, 1024)];
    let Some((memory, guest)) = guest("access", 1024, &work) else {
        return;
    };
    guest.start();
    guest
        .wait(LIMIT, |vcpus| {
            vcpus[0].reads > 1_000_000 && vcpus[1].writes > 1_000_000
        })
        .unwrap();
    let counters = guest.stop().unwrap();
    assert_eq!((counters[0].writes, counters[1].reads), (0, 0));
    let written = |page: usize| (0..PAGE / 8).any(|word| memory.read(page * PAGE + word * 8) != 0);
    for page in 0..1024 {
        assert_eq!(written(page), (512..600).contains(&page), "page {page}");
    }
}

#[test]
fn the_working_set_can_be_changed_while_the_guest_runs() {
    let Some((memory, guest)) = guest("working set", 1024, &[Work::access(0..1024, 1024)]) else {
        return;
    };
    guest.set_working_set(0, 10..12).unwrap();
    guest.start();
    guest.wait(LIMIT, |vcpus| vcpus[0].writes > 10_000).unwrap();
    guest.set_working_set(0, 20..30).unwrap();
    let before = guest.counters()[0].writes;
    guest
        .wait(LIMIT, |vcpus| vcpus[0].writes > before + 10_000)
        .unwrap();
    guest.stop().unwrap();
    let written: Vec<usize> = (0..1024)
        .filter(|page| (0..PAGE / 8).any(|word| memory.read(page * PAGE + word * 8) != 0))
        .collect();
    // While the set changes there is one moment with the new size and the old start, never more than both.
    let sets: Vec<usize> = (10..12).chain(20..30).collect();
    assert_eq!(written, sets);
    assert!(matches!(
        guest.set_working_set(0, 1000..1025),
        Err(Error::Config(_))
    ));
}

#[test]
fn paused_means_no_access_at_all_and_resumed_goes_on() {
    let Some((_memory, guest)) = guest(
        "pause",
        256,
        &[Work::access(128..256, 512), Work::churn(0..128, 8, 100)],
    ) else {
        return;
    };
    guest.start();
    for _ in 0..200 {
        guest.pause().unwrap();
        let held = guest.counters();
        std::thread::sleep(Duration::from_micros(200));
        assert_eq!(guest.counters(), held);
        guest.resume();
        guest
            .wait(LIMIT, |now| {
                now.iter().zip(&held).all(|(now, held)| now.reads > held.reads)
            })
            .unwrap();
    }
    guest.stop().unwrap();
}

#[test]
fn churn_is_right_about_its_pages_and_moves_its_window() {
    let work = [Work::churn(0..512, 16, 1000), Work::churn(512..1024, 512, 0)];
    let Some((memory, guest)) = guest("churn", 1024, &work) else {
        return;
    };
    guest.start();
    guest
        .wait(LIMIT, |vcpus| vcpus[0].passes >= 2 && vcpus[1].writes > 50_000)
        .unwrap();
    for counters in guest.stop().unwrap() {
        assert_eq!(counters.errors, 0);
    }
    for page in 0..1024 {
        let found = std::array::from_fn(|word| memory.read(page * PAGE + word * 8));
        assert_eq!(guest.churned(page as u32), found, "page {page}");
    }
}

#[test]
fn churn_sees_a_single_foreign_bit() {
    let Some((memory, guest)) = guest("foreign bit", 64, &[Work::churn(0..64, 8, 100)]) else {
        return;
    };
    guest.start();
    guest.wait(LIMIT, |vcpus| vcpus[0].writes > 1000).unwrap();
    guest.pause().unwrap();
    let at = 40 * PAGE + 8 * 511;
    memory.write(at, memory.read(at) ^ (1 << 63));
    guest.resume();
    let error = guest.wait(LIMIT, |_| false).unwrap_err();
    let Error::Corrupt { first, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(
        (first.page, first.offset, first.wanted ^ first.found),
        (40, 8 * 511, 1 << 63)
    );
}

#[test]
fn churn_sees_a_page_that_went_back_in_time() {
    let Some((memory, guest)) = guest("lost write", 64, &[Work::churn(0..64, 64, 0)]) else {
        return;
    };
    guest.start();
    guest.wait(LIMIT, |vcpus| vcpus[0].writes > 10_000).unwrap();
    guest.pause().unwrap();
    let old: Vec<u64> = (0..PAGE / 8)
        .map(|word| memory.read(7 * PAGE + word * 8))
        .collect();
    let before = guest.counters()[0].writes;
    guest.resume();
    guest
        .wait(LIMIT, |vcpus| vcpus[0].writes > before + 3000)
        .unwrap();
    guest.pause().unwrap();
    for (word, value) in old.iter().enumerate() {
        memory.write(7 * PAGE + word * 8, *value);
    }
    guest.resume();
    let error = guest.wait(LIMIT, |_| false).unwrap_err();
    let Error::Corrupt { first, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(first.page, 7);
}

#[test]
fn pace_slows_a_guest_down() {
    let Some((_memory, guest)) = guest("pace", 64, &[Work::access(0..64, 0)]) else {
        return;
    };
    guest.set_pace(0, Duration::from_millis(1));
    guest.start();
    let start = Instant::now();
    guest.wait(LIMIT, |vcpus| vcpus[0].reads > 20).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(20));
    guest.stop().unwrap();
}

#[test]
fn a_stall_is_seen_once() {
    let Some((_memory, guest)) = guest("stall", 64, &[Work::access(0..64, 0)]) else {
        return;
    };
    guest.start();
    guest.wait(LIMIT, |vcpus| vcpus[0].reads > 1000).unwrap();
    guest.pause().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let before = guest.counters()[0].reads;
    guest.resume();
    guest.wait(LIMIT, |vcpus| vcpus[0].reads > before + 1000).unwrap();
    guest.stop().unwrap();
    let stall = guest.take_longest_stall(0);
    assert!(stall >= Duration::from_millis(50) && stall < LIMIT, "{stall:?}");
    assert_eq!(guest.take_longest_stall(0), Duration::ZERO);
}

#[test]
fn impossible_work_is_refused() {
    if let Err(reason) = ring3::available() {
        return ring3::skip("impossible work", &reason);
    }
    let memory = Arc::new(Memory::anonymous(16 * PAGE).unwrap());
    for work in [
        vec![],
        vec![Work::access(0..17, 0)],
        vec![Work::access(5..5, 0)],
        vec![Work::churn(0..4, 5, 1)],
        vec![Work::access(0..1, 0); 17],
    ] {
        assert!(
            matches!(Guest::new(&memory, &work), Err(Error::Config(_))),
            "{work:?}"
        );
    }
}
