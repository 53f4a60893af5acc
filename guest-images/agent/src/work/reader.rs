//! A file that is read over and over, through the kernel's page cache: as fast as memory when the file fits, as slow as
//! the disk when it does not.

use std::fs::{self, File as FsFile};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use levy_agent::Reader;

use super::pattern::{Random, fill, key, word};
use super::run::{Going, Outcome, Run};

/// In each of these one word is checked: a sector is what a disk can lose or mix up.
const SECTOR: usize = 512;

pub(super) fn run(parameters: &Reader, run: &mut Run) -> Outcome {
    let blocks = Blocks::open(parameters)?;
    run.stats(
        "ready",
        [("mib", parameters.mib.into()), ("blocks", blocks.count.into())],
    );
    let going = run.begin_work();
    let read = match parameters.passes {
        0 => at_random(&blocks, &going, run)?,
        passes => in_order(&blocks, passes, &going, run)?,
    };
    let mut done = run.done(read, "blocks read");
    done.detail = "a word of every sector checked".to_owned();
    Ok(done)
}

fn at_random(blocks: &Blocks, going: &Going, run: &mut Run) -> Result<u64, String> {
    let mut random = Random::new(blocks.seed);
    let mut buffer = vec![0; blocks.size];
    let mut read = 0;
    while going.on() {
        blocks.read(random.below(blocks.count), &mut buffer)?;
        read += 1;
        run.tick(read);
    }
    Ok(read)
}

fn in_order(blocks: &Blocks, passes: u64, going: &Going, run: &mut Run) -> Result<u64, String> {
    let mut buffer = vec![0; blocks.size];
    let mut read = 0;
    for number in (0..passes).flat_map(|_| 0..blocks.count) {
        if going.stopped() {
            break;
        }
        blocks.read(number, &mut buffer)?;
        read += 1;
        run.tick(read);
    }
    Ok(read)
}

/// The file as blocks of equal size, each with a pattern of its own.
struct Blocks {
    file: FsFile,
    path: PathBuf,
    count: u64,
    size: usize,
    seed: u64,
}

impl Blocks {
    /// The file that an earlier run with the same parameters left, or a new one.
    fn open(parameters: &Reader) -> Result<Self, String> {
        let Reader {
            mib, block_kib, seed, ..
        } = *parameters;
        let name = format!("levy-reader.{mib}-{block_kib}-{seed}");
        let path = Path::new(&parameters.dir).join(name);
        let size = (block_kib << 10) as usize;
        let count = (mib << 10) / block_kib;
        let whole = fs::metadata(&path).is_ok_and(|file| file.len() == count * size as u64);
        if !whole {
            write(&path, count, size, seed).map_err(|error| {
                // Half a file would only be in the way.
                let _ = fs::remove_file(&path);
                format!("cannot write {}: {error}", path.display())
            })?;
        }
        let file = FsFile::open(&path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        Ok(Self {
            file,
            path,
            count,
            size,
            seed,
        })
    }

    fn read(&self, number: u64, buffer: &mut [u8]) -> Result<(), String> {
        self.file
            .read_exact_at(buffer, number * self.size as u64)
            .map_err(|error| format!("cannot read {}: {error}", self.path.display()))?;
        let key = key(self.seed, number, 0);
        for (sector, bytes) in buffer.chunks_exact(SECTOR).enumerate() {
            let expected = word(key, (sector * SECTOR / 8) as u64);
            if bytes[..8] != expected {
                return Err(format!(
                    "block {number}, sector {sector}: {:02x?} instead of {expected:02x?}",
                    &bytes[..8]
                ));
            }
        }
        Ok(())
    }
}

fn write(path: &Path, count: u64, size: usize, seed: u64) -> io::Result<()> {
    let mut file = FsFile::create(path)?;
    let mut block = vec![0; size];
    for number in 0..count {
        fill(&mut block, key(seed, number, 0));
        file.write_all(&block)?;
    }
    file.sync_all()
}
