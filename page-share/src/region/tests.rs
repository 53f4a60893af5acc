//! Tests of the region that need to see, or break, its inside: what several of them need.

mod blocks;
mod dying;
mod filling;
mod in_hand;
mod merging;
mod runs;

use std::process::{Command, ExitStatus};

use crate::{AnonymousMemory, Gfn, LocalManager, Options, PAGE_SIZE, Page, Region};

pub(super) fn page(content: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    for (index, word) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = content
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_add(index as u64)
            .to_le_bytes();
    }
    page
}

/// A guest whose page `at` has content `content(at)`, connected.
pub(super) fn guest_with(manager: &LocalManager, content: impl Fn(u32) -> u64) -> (AnonymousMemory, Region) {
    const PAGES: u32 = 512;
    let memory = AnonymousMemory::new(PAGES).unwrap();
    (0..PAGES).for_each(|at| memory.write_page(at, &page(content(at))));
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
    let port = manager.attach(region.page_limit()).unwrap();
    region.connect(Box::new(port)).unwrap();
    (memory, region)
}

/// Two guests with the same pages, merged.
pub(super) fn merged(manager: &LocalManager, pages: u32) -> Vec<(AnonymousMemory, Region)> {
    let guests: Vec<_> = (0..2)
        .map(|_| {
            let memory = AnonymousMemory::new(pages).unwrap();
            (0..pages).for_each(|at| memory.write_page(at, &page(u64::from(at))));
            let region = Region::adopt(vec![memory.range(Gfn::new(0))], Options::default()).unwrap();
            let port = manager.attach(region.page_limit()).unwrap();
            region.connect(Box::new(port)).unwrap();
            (memory, region)
        })
        .collect();
    for _ in 0..3 {
        guests.iter().for_each(|(_, region)| region.scan_pass());
    }
    guests
        .iter()
        .for_each(|(_, region)| assert_eq!(region.stats().shared, u64::from(pages)));
    guests
}

pub(super) fn small_region(options: Options) -> (AnonymousMemory, Region) {
    let memory = AnonymousMemory::new(1024).unwrap();
    (0..1024).for_each(|at| memory.write_page(at, &page(u64::from(at))));
    let region = Region::adopt(vec![memory.range(Gfn::new(0))], options).unwrap();
    (memory, region)
}

/// Runs `body` in a process of its own and returns how that ended: the test, by its `name` below this module, calls
/// itself.
pub(super) fn in_child(name: &str, body: impl FnOnce()) -> Option<ExitStatus> {
    if std::env::var("PAGE_SHARE_CHILD").as_deref() == Ok(name) {
        body();
        return None;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("region::tests::{name}"), "--nocapture"])
        .env("PAGE_SHARE_CHILD", name)
        .output()
        .unwrap();
    for line in [output.stdout, output.stderr]
        .concat()
        .split(|byte| *byte == b'\n')
    {
        // Indented, so that the words of its test harness are not taken for those of this process's.
        println!("  {}", String::from_utf8_lossy(line));
    }
    Some(output.status)
}
