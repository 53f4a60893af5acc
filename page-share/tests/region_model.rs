//! Random sequences of everything a region can do, against memory as an array of contents.

mod contents;

use page_share::{
    AnonymousMemory, Blocks, Domain, Gfn, LocalManager, Options, PAGE_SIZE, Page, PageRun, Region, Release,
    Swap,
};
use proptest::prelude::*;

/// Two blocks of 2 MiB and a bit.
const PAGES: u32 = 1100;
const GUESTS: usize = 2;
const WORDS: u32 = contents::WORDS as u32;

#[derive(Debug, Clone)]
enum Step {
    /// Writes content `u8` over pages.
    Write(PageRun, u8),
    /// Writes a word of a page and back again: the content stays, but the page was written.
    Touch(u32, u32),
    Scan(u8),
    ScanPart(u32),
    /// Writes a word of pages between the look at them and their merging: contents become their likes.
    Turn(PageRun),
    Hint(PageRun),
    Unshare,
    Release(PageRun, bool),
    Deflate(PageRun),
    StartSample(u32),
    FinishSample,
    Compress(PageRun),
    SwapOut(PageRun),
    BringBack(PageRun),
    Never(PageRun),
    Pinned(PageRun),
    Gate,
    Split(u32),
    Rebuild(u32),
    RestartManager,
    StopManager,
    DropAndAdopt(bool),
    Discard,
}

fn run() -> impl Strategy<Value = PageRun> {
    (0..PAGES, prop_oneof![1u32..4, 1u32..200, Just(PAGES)])
        .prop_map(|(first, count)| PageRun::new(Gfn::new(first), count.min(PAGES - first)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (run(), 0u8..6).prop_map(|(run, content)| Step::Write(run, content)),
        4 => (0..PAGES, 0..WORDS).prop_map(|(page, word)| Step::Touch(page, word)),
        8 => (1u8..6).prop_map(Step::Scan),
        2 => (1u32..3000).prop_map(Step::ScanPart),
        4 => run().prop_map(Step::Turn),
        2 => run().prop_map(Step::Hint),
        1 => Just(Step::Unshare),
        4 => (run(), any::<bool>()).prop_map(|(run, balloon)| Step::Release(run, balloon)),
        1 => run().prop_map(Step::Deflate),
        2 => (1u32..300).prop_map(Step::StartSample),
        1 => Just(Step::FinishSample),
        4 => run().prop_map(Step::Compress),
        4 => run().prop_map(Step::SwapOut),
        2 => run().prop_map(Step::BringBack),
        1 => (0..PAGES).prop_map(|page| Step::Never(PageRun::new(Gfn::new(page), 1))),
        2 => run().prop_map(Step::Pinned),
        1 => Just(Step::Gate),
        2 => (1u32..3).prop_map(Step::Split),
        2 => (0u32..2).prop_map(Step::Rebuild),
        1 => Just(Step::RestartManager),
        1 => Just(Step::StopManager),
        1 => any::<bool>().prop_map(Step::DropAndAdopt),
        1 => Just(Step::Discard),
    ]
}

/// Contents 2 and 3 differ in one word, as do 4 and 5. Some compress, others do not.
fn page(content: u8) -> Page {
    let number = u64::from(content);
    match content {
        0 => [0; PAGE_SIZE],
        2 | 3 => contents::page(number),
        _ => contents::page_of(|index| contents::noise(number, index)),
    }
}

struct Guest {
    memory: AnonymousMemory,
    region: Option<Region>,
    model: Vec<u8>,
}

struct World {
    manager: LocalManager,
    directory: tempfile::TempDir,
    guests: Vec<Guest>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            manager: LocalManager::new(Domain::new(1 << 16).unwrap()),
            directory: tempfile::tempdir().unwrap(),
            guests: Vec::new(),
        };
        for _ in 0..GUESTS {
            let memory = AnonymousMemory::new(PAGES).unwrap();
            let mut guest = Guest {
                memory,
                region: None,
                model: vec![0; PAGES as usize],
            };
            guest.region = Some(world.adopt(&guest.memory, Blocks::Managed));
            world.guests.push(guest);
        }
        world
    }

    fn adopt(&self, memory: &AnonymousMemory, blocks: Blocks) -> Region {
        let swap = Some(Swap::create(self.directory.path(), 500).unwrap());
        let options = Options::default()
            .with_blocks(blocks)
            .with_store_bytes(512 << 10)
            .with_swap(swap);
        // Numbered from 512 on: nothing may depend on memory starting at page 0.
        let region = Region::adopt(vec![memory.range(Gfn::new(512))], options).unwrap();
        if let Ok(port) = self.manager.attach(region.page_limit()) {
            region.connect(Box::new(port)).unwrap();
        }
        region
    }

    fn apply(&mut self, at: usize, step: &Step) {
        match step {
            Step::RestartManager => self.manager.restart(Domain::new(1 << 16).unwrap()),
            Step::StopManager => self.manager.stop(),
            Step::DropAndAdopt(huge) => {
                self.guests[at].region = None;
                let blocks = if *huge { Blocks::Huge } else { Blocks::Managed };
                self.guests[at].region = Some(self.adopt(&self.guests[at].memory, blocks));
            }
            Step::Discard => {
                self.guests[at].region.take().unwrap().discard();
                let managed = self.adopt(&self.guests[at].memory, Blocks::Managed);
                self.guests[at].region = Some(managed);
                self.guests[at].model.fill(0);
            }
            step => self.guests[at].apply(step),
        }
    }
}

impl Guest {
    fn apply(&mut self, step: &Step) {
        let Some(region) = &self.region else { return };
        let shift = |run: PageRun| PageRun::new(Gfn::new(run.first.get() + 512), run.count);
        let range = |run: PageRun| run.first.get() as usize..(run.first.get() + run.count) as usize;
        match *step {
            Step::Write(run, content) => {
                let bytes = page(content);
                for at in range(run) {
                    self.memory.write_page(at as u32, &bytes);
                    self.model[at] = content;
                }
            }
            Step::Touch(at, word) => {
                let at = at as usize * PAGE_SIZE + word as usize * 8;
                let word = self.memory.load(at);
                self.memory.store(at, !word);
                self.memory.store(at, word);
            }
            Step::Turn(run) => self.turn(run),
            Step::Scan(passes) => (0..passes).for_each(|_| region.scan_pass()),
            Step::ScanPart(pages) => drop(region.scan_step(pages)),
            Step::Hint(run) => region.prioritize(shift(run)),
            Step::Unshare => drop(region.unshare_all()),
            Step::Release(run, balloon) => {
                region.release(
                    shift(run),
                    if balloon {
                        Release::Balloon
                    } else {
                        Release::Report
                    },
                );
                self.model[range(run)].fill(0);
            }
            Step::Deflate(run) => region.deflate(shift(run)),
            Step::StartSample(n) => drop(region.start_sample(n)),
            Step::FinishSample => {
                let sample = region.finish_sample();
                assert!(sample.touched <= sample.taken);
            }
            Step::Compress(run) => drop(region.compress(shift(run))),
            // A full file is a result like any other here.
            Step::SwapOut(run) => drop(region.swap_out(shift(run))),
            Step::BringBack(run) => drop(region.bring_back(shift(run))),
            Step::Never(run) => drop(region.exclude(shift(run))),
            Step::Pinned(run) => {
                let pin = region.pin(shift(run)).unwrap();
                let before = region.stats();
                region.scan_pass();
                region.compress(shift(run));
                let after = region.stats();
                assert_eq!(after.pages_compressed, before.pages_compressed);
                drop(pin);
            }
            Step::Gate => {
                region.close_gate();
                region.scan_pass();
                region.open_gate();
            }
            Step::Split(blocks) => drop(region.split_blocks(blocks)),
            Step::Rebuild(block) => drop(region.rebuild_block(Gfn::new(512 + block * 512))),
            Step::RestartManager | Step::StopManager | Step::DropAndAdopt(_) | Step::Discard => {}
        }
    }

    /// Changes pages of `run` in one word each, between the look that finds them quiet and their merging.
    fn turn(&mut self, run: PageRun) {
        let Some(region) = &self.region else { return };
        region.scan_pass();
        // One chunk is looked at, and what equals other pages is still to be merged.
        region.scan_step(1);
        for at in run.first.get() as usize..(run.first.get() + run.count) as usize {
            let like = match self.model[at] {
                content @ 2..6 => content ^ 1,
                content => content,
            };
            let (before, after) = (page(self.model[at]), page(like));
            let words = before.as_chunks::<8>().0.iter().zip(after.as_chunks::<8>().0);
            for (word, (_, &new)) in words.enumerate().filter(|(_, (old, new))| old != new) {
                let address = at * PAGE_SIZE + word * 8;
                self.memory.store(address, u64::from_le_bytes(new));
            }
            self.model[at] = like;
        }
        region.scan_pass();
    }

    /// Looks at every `stride`-th page from `from` on.
    fn check(&self, from: usize, stride: usize) {
        for at in (from..PAGES as usize).step_by(stride) {
            assert!(
                self.memory.read_page(at as u32) == page(self.model[at]),
                "page {at:#x} should hold content {}",
                self.model[at]
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn memory_holds_what_was_written(
        steps in prop::collection::vec((0..GUESTS, step()), 1..60),
    ) {
        let mut world = World::new();
        for (index, (guest, step)) in steps.iter().enumerate() {
            world.apply(*guest, step);
            // Few pages, or nothing would ever stay compressed.
            world.guests.iter().for_each(|guest| guest.check(index * 37 % 211, 211));
        }
        world.guests.iter().for_each(|guest| guest.check(0, 1));
        world.manager.with(|domain| domain.check().unwrap());
        world.guests.iter_mut().for_each(|guest| guest.region = None);
        world.guests.iter().for_each(|guest| guest.check(0, 1));
        let held = world.manager.with(|domain| { domain.check().unwrap(); domain.sizes().references });
        prop_assert_eq!(held.unwrap_or(0), 0, "references were not returned");
    }
}
