//! What may be adopted: private anonymous memory that can be moved page by page, and that belongs to this guest alone.
//!
//! What a caller can do wrong is found here, before anything is changed.

use crate::page::PAGE_SIZE;
use crate::region::error::AdoptError;
use crate::region::guest::layout::{Layout, MemoryRange};
use crate::region::kernel::{HUGE_PAGES, Userfault, Watch, new_mappings_are_locked};
use crate::region::options::Blocks;
use crate::region::run::PageRun;

/// `ranges` in order, if they can be one guest's memory.
pub(super) fn check(
    ranges: Vec<MemoryRange>,
    blocks: Blocks,
    watch: &Userfault,
) -> Result<Layout, AdoptError> {
    check_bounds(&ranges)?;
    let layout = Layout::new(ranges).ok_or(AdoptError::Ranges)?;
    check_addresses(&layout)?;
    check_mappings(&layout)?;
    if blocks == Blocks::Huge {
        check_blocks(&layout)?;
    }
    check_unwatched(&layout, watch)?;
    Ok(layout)
}

/// Every range is whole pages that have numbers and addresses.
fn check_bounds(ranges: &[MemoryRange]) -> Result<(), AdoptError> {
    for range in ranges {
        let (run, span) = (range.run(), range.arena.span());
        if run.count == 0 {
            return Err(AdoptError::Ranges);
        }
        if run.first.get().checked_add(run.count).is_none() {
            return Err(AdoptError::TooHigh { run });
        }
        let address = span.start();
        let ends = (run.count as usize)
            .checked_mul(PAGE_SIZE)
            .and_then(|bytes| address.checked_add(bytes));
        if !address.is_multiple_of(PAGE_SIZE) || ends.is_none() {
            return Err(AdoptError::Unaligned { run, address });
        }
    }
    Ok(())
}

/// No two ranges are the same memory.
fn check_addresses(layout: &Layout) -> Result<(), AdoptError> {
    let mut spans: Vec<_> = layout.runs().map(|run| (layout.span(run), run)).collect();
    spans.sort_by_key(|(span, _)| span.start());
    let twice = spans.windows(2).find(|pair| pair[0].0.end() > pair[1].0.start());
    match twice {
        Some(pair) => Err(AdoptError::SameMemory { run: pair[1].1 }),
        None => Ok(()),
    }
}

/// Refuses everything but private anonymous memory that can be read, written and moved.
fn check_mappings(layout: &Layout) -> Result<(), AdoptError> {
    if new_mappings_are_locked().map_err(system("mapping a page"))? {
        return Err(AdoptError::AllLocked);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|source| AdoptError::System {
        what: "reading /proc/self/maps",
        source,
    })?;
    layout.runs().try_for_each(|run| check_range(layout, run, &maps))
}

/// The same for one range, as /proc/self/maps has it.
fn check_range(layout: &Layout, run: PageRun, maps: &str) -> Result<(), AdoptError> {
    let span = layout.span(run);
    let mut covered = span.start();
    for line in maps.lines() {
        let Some((start, end)) = bounds(line) else {
            continue;
        };
        if end <= covered || start >= span.end() {
            continue;
        }
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let plain = fields.get(1) == Some(&"rw-p") && fields.get(4) == Some(&"0");
        if start > covered || !plain {
            break;
        }
        if span.sub((covered - span.start()) / PAGE_SIZE, 1).is_locked() {
            return Err(AdoptError::Locked { run });
        }
        covered = end;
    }
    if covered < span.end() {
        let line = maps
            .lines()
            .find(|line| bounds(line).is_some_and(|(start, end)| (start..end).contains(&covered)));
        let found = line.map_or("not mapped".into(), |line| format!("mapped as \"{line}\""));
        return Err(AdoptError::WrongMemory { run, found });
    }
    Ok(())
}

fn bounds(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some((
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    ))
}

/// Huge blocks start where the kernel's huge pages can.
fn check_blocks(layout: &Layout) -> Result<(), AdoptError> {
    let huge = HUGE_PAGES as usize * PAGE_SIZE;
    let same = |run: &PageRun| {
        let guest = (run.first.get() % HUGE_PAGES) as usize * PAGE_SIZE;
        layout.span(*run).start() % huge == guest
    };
    match layout.runs().find(|run| !same(run)) {
        Some(run) => Err(AdoptError::Misaligned { run }),
        None => Ok(()),
    }
}

/// No other userfaultfd watches the memory. The kernel tells only who tries: a whole range or nothing of it.
fn check_unwatched(layout: &Layout, watch: &Userfault) -> Result<(), AdoptError> {
    for run in layout.runs() {
        let span = layout.span(run);
        // Only what became ours is let go: older kernels let any descriptor unregister anything.
        let tried = watch.register(span, Watch::MissingAndWrites);
        match tried.and_then(|()| watch.unregister(span)) {
            Ok(()) => {}
            Err(rustix::io::Errno::BUSY) => return Err(AdoptError::Watched { run }),
            Err(error) => return Err(system("watching guest memory")(error)),
        }
    }
    Ok(())
}

/// Names what the system refused.
pub(crate) fn system(what: &'static str) -> impl Fn(rustix::io::Errno) -> AdoptError {
    move |errno| AdoptError::System {
        what,
        source: errno.into(),
    }
}
