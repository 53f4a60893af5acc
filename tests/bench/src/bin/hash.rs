//! What the manager's half of sharing costs per page: naming, indexing, publishing, storing, swapping.
//!
//! Each quantity is compared with its rival of the same run: the sketch with BLAKE3 and a plain comparison, the index
//! with the standard hash map, the socket with a call in the same process.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hint::black_box;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use levy_bench::{Random, Report as Json, Samples};
use page_share::port::{Answer, Offer, PUBLISH_BATCH, Port, Publication, REPORT_BATCH, Report};
use page_share::{
    Compressor, Domain, DomainKey, Gfn, GuestProcess, LocalManager, PAGE_SIZE, Page, PageHasher, Peer,
    Sketch, Slot, SocketPort, Store, Swap, serve,
};

#[derive(Parser)]
#[command(about = "Naming, indexing, publishing, storing and swapping a page")]
struct Args {
    /// Write the report to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A quarter of the pages and half of the repetitions
    #[arg(long)]
    quick: bool,
}

/// How much is measured.
#[derive(Clone, Copy)]
struct Scale {
    /// Pages of real bytes.
    pages: usize,
    /// Entries of the index.
    entries: u32,
    rounds: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let scale = if args.quick {
        Scale {
            pages: 8192,
            entries: 1 << 18,
            rounds: 5,
        }
    } else {
        Scale {
            pages: 32768,
            entries: 1 << 20,
            rounds: 9,
        }
    };
    let mut table = Table {
        json: Json::new("hash"),
    };
    let pages = pages(scale.pages);
    naming(&mut table, &pages, scale);
    index(&mut table, scale)?;
    conversation(&mut table, &pages, scale)?;
    store(&mut table, &pages)?;
    swap(&mut table, &pages)?;
    Ok(table.json.write(args.json.as_deref())?)
}

/// Prints and keeps results.
struct Table {
    json: Json,
}

impl Table {
    fn row(&mut self, path: &str, value: f64, unit: &str) {
        println!("{path:44} {value:10.3} {unit}");
        self.json.set(path, value);
    }
}

/// CPU microseconds of `action`: all threads, system time included.
fn cpu_us_of<T>(action: impl FnOnce() -> T) -> (f64, T) {
    let (cpu, value) = levy_bench::cpu_of(action);
    (cpu.as_secs_f64() * 1e6, value)
}

/// Pages that look like a guest's: half text-like, half noise, all different.
fn pages(count: usize) -> Vec<Page> {
    let mut random = Random::new(1);
    let mut pages = vec![[0; PAGE_SIZE]; count];
    for (number, page) in pages.iter_mut().enumerate() {
        for word in page.as_chunks_mut::<4>().0 {
            *word = if number % 2 == 0 {
                (random.number() as u32).to_le_bytes()
            } else {
                [b"etaoin s"[random.place(8)]; 4]
            };
        }
        page[..8].copy_from_slice(&(number as u64).to_le_bytes());
    }
    pages
}

/// Pages that a scanner has just copied are in its cache: so are these.
const WARM: usize = 64;

fn naming(table: &mut Table, pages: &[Page], scale: Scale) {
    let hasher = PageHasher::new(&DomainKey::from_bytes([7; 32]));
    let mut median = |path: &str, work: &dyn Fn(&Page) -> u64| {
        let mut samples = Samples::default();
        for _ in 0..scale.rounds {
            let repeats = scale.pages / WARM;
            let (cost, ()) = cpu_us_of(|| {
                for page in std::iter::repeat_n(&pages[..WARM], repeats).flatten() {
                    black_box(work(black_box(page)));
                }
            });
            samples.push(cost / (repeats * WARM) as f64);
        }
        let median = samples.median().median;
        table.row(path, median, "us CPU/page");
        median
    };
    let sketch = median("naming.sketch_us", &|page| hasher.sketch(page).get());
    let blake3 = median("naming.blake3_us", &|page| {
        u64::from(hasher.hash(page).as_bytes()[0])
    });
    let twin = pages[..WARM].to_vec();
    let same = |page: &Page| twin[page[0] as usize % WARM] == *page;
    median("naming.compare_us", &|page| u64::from(same(page)));
    table.row("naming.blake3_per_sketch", blake3 / sketch, "x");
    // What scanning costs in names per page that merges, when one page in two is unique (two guests of one image).
    table.row(
        "naming.all_blake3_us",
        2.0 * blake3,
        "us per merged page, BLAKE3 for every report",
    );
    table.row(
        "naming.sketch_first_us",
        2.0 * sketch + blake3 / 2.0,
        "us per merged page, BLAKE3 once per pool page",
    );
}

fn spread(number: u32) -> Sketch {
    Sketch::new(
        (u64::from(number) + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9),
    )
}

fn index(table: &mut Table, scale: Scale) -> anyhow::Result<()> {
    let mut domain = Domain::new(1 << 20)?;
    let local = domain.attach(scale.entries)?;
    let guest = local.attachment();
    let reports: Vec<Report> = (0..scale.entries)
        .map(|gfn| Report {
            gfn: Gfn::new(gfn),
            sketch: spread(gfn),
        })
        .collect();
    let mut answers = Vec::new();
    let mut worst = 0.0f64;
    let mut pass = |domain: &mut Domain, worst: &mut f64| -> anyhow::Result<f64> {
        let start = Instant::now();
        for (number, batch) in reports.chunks(REPORT_BATCH).enumerate() {
            domain.report(guest, batch, &mut answers)?;
            if number >= 16 {
                let candidates = ((number + 1) * REPORT_BATCH).min(domain.sizes().hints as usize);
                *worst = worst.max(domain.sizes().metadata_bytes() as f64 / candidates as f64);
            }
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / reports.len() as f64)
    };
    let insert = pass(&mut domain, &mut worst)?;
    let again = pass(&mut domain, &mut 0.0)?;
    table.row("index.insert_us", insert, "us/page");
    table.row("index.look_up_us", again, "us/page");
    let sizes = domain.sizes();
    let each = |bytes: u64| bytes as f64 / f64::from(scale.entries);
    table.row(
        "index.bytes_per_candidate",
        each(sizes.metadata_bytes()),
        "bytes, all contents different",
    );
    table.row(
        "index.bytes_per_candidate_worst",
        worst,
        "bytes, at any time while growing",
    );
    let start = Instant::now();
    let mut map = HashMap::new();
    for report in &reports {
        map.entry(report.sketch).or_insert((guest, report.gfn));
    }
    let rival = start.elapsed().as_secs_f64() * 1e6 / reports.len() as f64;
    table.row("index.hash_map_insert_us", rival, "us/page");
    let places = map.capacity() as f64 * 8.0 / 7.0;
    let bytes = places * (size_of_val(&map.iter().next()) as f64).max(17.0);
    table.row(
        "index.hash_map_bytes",
        bytes / f64::from(scale.entries),
        "bytes/page",
    );
    black_box(map);
    Ok(())
}

/// Three guests with the same pages, the second publishing: every step's CPU, both sides together.
fn conversation(table: &mut Table, pages: &[Page], scale: Scale) -> anyhow::Result<()> {
    let count = pages.len() as u32;
    for (place, socket) in [("local", false), ("socket", true)] {
        let mut costs: Vec<(&str, Samples)> = Vec::new();
        let mut bytes = Samples::default();
        for _ in 0..scale.rounds.min(5) {
            let manager = LocalManager::new(Domain::new(count)?);
            let mut ports = Vec::new();
            for _ in 0..3 {
                ports.push(port(&manager, count, socket)?);
            }
            for (step, cost) in talk(&mut ports, pages)? {
                match costs.iter_mut().find(|(known, _)| *known == step) {
                    Some((_, samples)) => samples.push(cost),
                    None => {
                        costs.push((step, Samples::default()));
                        costs.last_mut().expect("just pushed").1.push(cost);
                    }
                }
            }
            let sizes = manager.with(|domain| domain.sizes()).expect("the manager runs");
            bytes.push(sizes.metadata_bytes() as f64 / f64::from(3 * count));
        }
        let mut total = 0.0;
        for (step, samples) in &costs {
            let median = samples.median().median;
            total += median;
            table.row(&format!("{place}.{step}_us"), median, "us CPU/page");
        }
        table.row(
            &format!("{place}.per_merged_page_us"),
            total / 3.0,
            "us CPU, 3 guests alike, sketches included",
        );
        table.row(
            &format!("{place}.bytes_per_candidate"),
            bytes.median().median,
            "bytes, 3 guests alike",
        );
    }
    Ok(())
}

fn port(manager: &LocalManager, pages: u32, socket: bool) -> anyhow::Result<Box<dyn Port>> {
    if !socket {
        return Ok(Box::new(manager.attach(pages)?));
    }
    let manager = manager.clone();
    let connect = move || -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let manager = manager.clone();
        let process = GuestProcess::of_peer(&theirs)?;
        std::thread::spawn(move || serve(theirs, &manager, Peer { pages, process }));
        Ok(ours)
    };
    Ok(Box::new(SocketPort::attach(pages, connect)?))
}

/// CPU microseconds per page of each step.
fn talk(ports: &mut [Box<dyn Port>], pages: &[Page]) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let hasher = PageHasher::new(&ports[0].session().key);
    let each = |cost: f64| cost / pages.len() as f64;
    let name = || -> Vec<Report> {
        let names = pages.iter().enumerate();
        names
            .map(|(gfn, page)| Report {
                gfn: Gfn::new(gfn as u32),
                sketch: hasher.sketch(page),
            })
            .collect()
    };
    let (sketching, reports) = cpu_us_of(name);
    let mut costs = vec![("sketch_all_three", 3.0 * each(sketching))];
    for (step, guest, expected) in [
        ("first_report", 0, Answer::Noted),
        ("second_report", 1, Answer::Publish),
    ] {
        let (cost, answers) = cpu_us_of(|| report(&mut *ports[guest], &reports));
        anyhow::ensure!(
            answers?.iter().all(|answer| *answer == expected),
            "{step} was answered otherwise"
        );
        costs.push((step, each(cost)));
    }
    let (cost, granted) = cpu_us_of(|| publish(&mut *ports[1], &reports, pages));
    let granted = granted?;
    costs.push(("publish", each(cost)));
    let (cost, offers) = cpu_us_of(|| offers(&mut *ports[0], pages.len()));
    anyhow::ensure!(offers?.len() == pages.len(), "an offer for every hint");
    costs.push(("offers", each(cost)));
    let (cost, answers) = cpu_us_of(|| report(&mut *ports[2], &reports));
    anyhow::ensure!(
        answers?.iter().all(|answer| matches!(answer, Answer::Shared(_))),
        "shared at once"
    );
    costs.push(("third_report", each(cost)));
    let (cost, released) = cpu_us_of(|| -> anyhow::Result<()> {
        for port in ports.iter_mut() {
            let generation = port.session().generation;
            for slots in granted.chunks(REPORT_BATCH) {
                port.release(generation, slots)?;
            }
        }
        Ok(())
    });
    released?;
    // Not part of merging; printed by itself.
    println!(
        "{:44} {:10.3} us CPU/reference",
        "  (release and punch)",
        each(cost) / 3.0
    );
    Ok(costs)
}

fn report(port: &mut dyn Port, reports: &[Report]) -> anyhow::Result<Vec<Answer>> {
    let (mut all, mut answers) = (Vec::new(), Vec::new());
    for batch in reports.chunks(REPORT_BATCH) {
        port.report(batch, &mut answers)?;
        all.append(&mut answers);
    }
    Ok(all)
}

fn publish(port: &mut dyn Port, reports: &[Report], pages: &[Page]) -> anyhow::Result<Vec<Slot>> {
    let (mut slots, mut results) = (Vec::new(), Vec::new());
    for (batch, bytes) in reports.chunks(PUBLISH_BATCH).zip(pages.chunks(PUBLISH_BATCH)) {
        port.publish(batch, bytes, &mut results)?;
        for result in &results {
            match result {
                Publication::Granted(slot) => slots.push(*slot),
                other => anyhow::bail!("not granted: {other:?}"),
            }
        }
    }
    Ok(slots)
}

fn offers(port: &mut dyn Port, count: usize) -> anyhow::Result<Vec<Offer>> {
    let (mut all, mut offers) = (Vec::new(), Vec::new());
    while all.len() < count {
        port.offers(&mut offers)?;
        anyhow::ensure!(!offers.is_empty(), "offers are missing");
        all.append(&mut offers);
    }
    Ok(all)
}

fn store(table: &mut Table, pages: &[Page]) -> anyhow::Result<()> {
    let (mut store, mut compressor) = (Store::new(1 << 30)?, Compressor::new());
    let mut handles = Vec::new();
    let (all, ()) = cpu_us_of(|| {
        for page in pages {
            black_box(compressor.compress(page).is_some());
        }
    });
    table.row(
        "store.compress_us",
        all / pages.len() as f64,
        "us CPU/page, half of them noise",
    );
    let (cost, kept) = cpu_us_of(|| -> anyhow::Result<()> {
        for page in pages.iter().skip(1).step_by(2) {
            let compressed = compressor.compress(page);
            handles.push(store.insert(compressed.ok_or_else(|| anyhow::anyhow!("text must compress"))?)?);
        }
        Ok(())
    });
    kept?;
    let count = handles.len() as f64;
    table.row("store.compress_and_insert_us", cost / count, "us CPU/page, text");
    table.row(
        "store.bytes_per_page",
        store.reserved_bytes() as f64 / count,
        "bytes, all memory",
    );
    let mut out = [0; PAGE_SIZE];
    let (cost, loaded) = cpu_us_of(|| -> anyhow::Result<()> {
        for handle in &handles {
            store.load(*handle, &mut out)?;
            store.remove(*handle)?;
        }
        Ok(())
    });
    loaded?;
    table.row("store.load_and_remove_us", cost / count, "us CPU/page");
    Ok(())
}

fn swap(table: &mut Table, pages: &[Page]) -> anyhow::Result<()> {
    let mut swap = Swap::create(&std::env::temp_dir(), pages.len() as u32)?;
    let mut slots = Vec::new();
    let (cost, written) = cpu_us_of(|| -> anyhow::Result<()> {
        for batch in pages.chunks(PUBLISH_BATCH) {
            swap.write(batch, &mut slots)?;
        }
        Ok(())
    });
    written?;
    let count = pages.len() as f64;
    table.row("swap.write_us", cost / count, "us CPU/page, without the disk's");
    let mut out = [0; PAGE_SIZE];
    let (cost, read) = cpu_us_of(|| -> anyhow::Result<()> {
        for (slot, page) in slots.iter().zip(pages) {
            swap.locate(*slot)?.read(&mut out)?;
            anyhow::ensure!(out == *page, "{slot:?} came back changed");
        }
        Ok(())
    });
    read?;
    table.row("swap.read_us", cost / count, "us CPU/page, from the page cache");
    Ok(())
}
