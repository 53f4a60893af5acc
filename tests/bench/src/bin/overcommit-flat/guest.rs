//! One guest: its memory under management, two virtual CPUs, and what they found.
#![allow(unsafe_code)]
// UNSAFETY: lends guest memory to a virtual machine.

use std::io::{BufRead, Write};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use levy_machine::memory::GuestRam;
use levy_member::{Duties, Introduction, ManagedMemory, ManagerClient};
use levy_protocol::link::Hello;
use ring3::{Guest, PAGE, Program, Work};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use crate::Args;

/// How much a guest is promised, as a divisor of its size.
pub(crate) const MIN_PART: u64 = 8;

/// Pages that churn rewrites before it moves on, and how often.
const WINDOW: (u32, u32) = (4096, 20_000);

/// The words of a filled page: this, and a multiple of its number.
const FILL: (u64, u64) = (0x5851_f42d_4c95_7f2d, 0x1405_7b7e_f767_814f);

/// What a guest says, one line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Word {
    /// It runs.
    Running,
    /// Pages filled and changed so far.
    Counted { filled: u64, changed: u64 },
    /// Every page is what it has to be.
    Verified {
        /// Pages that were filled, all of them looked at afterwards.
        filled: u64,
        /// Pages that were checked and changed while it ran.
        changed: u64,
        /// Pages that were checked while it ran.
        checked: u64,
        /// Longest time between two accesses, by virtual CPU, milliseconds.
        stalls_ms: [f64; 2],
        /// Accesses that had to wait for memory.
        gated: u64,
        /// Pages compressed, swapped out and brought back.
        compressed: u64,
        swapped_out: u64,
        returned: u64,
    },
}

/// No balloon, and an end that comes over standard input.
struct NoDevices;

impl Duties for NoDevices {
    fn is_paused(&self) -> bool {
        false
    }

    fn stop(&mut self) {}

    fn pause(&mut self, _: bool) {}
}

/// Runs until standard input ends; lines there are `rest`, `work` and `count`.
pub(crate) fn run(number: u64, dir: &Path, args: &Args) -> Result<()> {
    let bytes = args.size << 20;
    let ram = Arc::new(GuestRam::new(bytes)?);
    let hello = Hello::new(format!("flat-{}", number + 1), bytes);
    let hello = hello.with_min(bytes / MIN_PART).in_domain("flat");
    if !args.alone {
        let introduction = Introduction::make(dir, hello).context("the manager does not take this guest")?;
        let managed = ManagedMemory::start(&ram, Some(args.swap.clone()))?;
        ManagerClient::start(introduction, managed, Box::new(NoDevices))?;
    }
    let [region] = ram.regions() else {
        bail!("a flat guest has one piece of memory");
    };
    let pages = (bytes / PAGE as u64) as u32;
    let mut churn = Work::churn(pages / 2..pages, WINDOW.0.min(pages / 2), WINDOW.1);
    churn.seed ^= number << 40;
    let fill = Work {
        program: Program::Fill {
            value: FILL.0.wrapping_mul(number + 1),
            stride: FILL.1,
            rounds: 0,
        },
        pages: 0..pages / 2,
        seed: 1,
    };
    let memory = NonNull::new(region.host as *mut u8).context("guest memory at address 0")?;
    // SAFETY: `ram` outlives the guest, and only its region rearranges it.
    let guest = unsafe { Guest::over(memory, bytes as usize, &[fill, churn]) }?;
    guest.start();
    say(&Word::Running)?;
    obey(&guest)?;
    guest.resume();
    let stalls_ms = [0, 1].map(|vcpu| guest.take_longest_stall(vcpu).as_secs_f64() * 1e3);
    let counters = guest.stop().context("the guest found a wrong page, or hangs")?;
    check_filled(&ram, number, pages / 2, counters[0].writes)?;
    let stats = ram.manager().map(|region| region.stats()).unwrap_or_default();
    say(&Word::Verified {
        filled: counters[0].writes,
        changed: counters[1].writes,
        checked: counters[1].reads,
        stalls_ms,
        gated: stats.faults_gated,
        compressed: stats.pages_compressed,
        swapped_out: stats.pages_swapped_out,
        returned: stats.pages_decompressed + stats.pages_swapped_in,
    })?;
    // The region's threads still work on the memory; the process ends with them.
    std::process::exit(0);
}

fn obey(guest: &Guest) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "rest" => guest.pause()?,
            "work" => guest.resume(),
            "count" => {
                guest.check()?;
                let counters = guest.counters();
                say(&Word::Counted {
                    filled: counters[0].writes,
                    changed: counters[1].writes,
                })?;
            }
            other => bail!("{other:?} is no order"),
        }
    }
    Ok(())
}

fn say(word: &Word) -> Result<()> {
    println!("{}", serde_json::to_string(word)?);
    Ok(std::io::stdout().flush()?)
}

/// Looks at every filled page, wherever it is by now.
fn check_filled(ram: &GuestRam, number: u64, pages: u32, written: u64) -> Result<()> {
    let start = Instant::now();
    let mut page = [0_u8; PAGE];
    for at in 0..u64::from(pages) {
        ram.view().read_slice(&mut page, GuestAddress(at * PAGE as u64))?;
        let expected = FILL
            .0
            .wrapping_mul(number + 1)
            .wrapping_add(FILL.1.wrapping_mul(at));
        let expected = if at < written { expected } else { 0 };
        let wrong = page.chunks(8).position(|word| word != expected.to_le_bytes());
        if let Some(wrong) = wrong {
            bail!("guest {number}: page {at}, word {wrong}: not what was written");
        }
        if start.elapsed() > Duration::from_secs(120) {
            bail!("guest {number}: its pages cannot be read in time");
        }
    }
    Ok(())
}
