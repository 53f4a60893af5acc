//! A file that comes and goes: memory that a guest frees and that its host can have back.

use std::fs::{self, File as FsFile};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use levy_agent::File;

use super::pattern::{check, fill, key};
use super::run::{Outcome, Run};

const BLOCK: usize = 64 * 1024;

pub(super) fn run(parameters: &File, run: &mut Run) -> Outcome {
    let scratch = ScratchFile(Path::new(&parameters.dir).join(format!("levy-file.{}", std::process::id())));
    let going = run.begin_work();
    let hold = Duration::from_secs(parameters.hold);
    let (mut mib, mut round) = (0, 0);
    while going.on() {
        write(&scratch.0, parameters, round)?;
        mib += parameters.mib;
        run.stats("written", [("mib", parameters.mib.into())]);
        run.tick(mib);
        going.sleep(hold);
        verify(&scratch.0, parameters, round)?;
        fs::remove_file(&scratch.0)
            .map_err(|error| format!("cannot delete {}: {error}", scratch.0.display()))?;
        run.stats("deleted", [("mib", parameters.mib.into())]);
        run.tick(mib);
        going.sleep(hold);
        round += 1;
    }
    Ok(run.done(mib, "MiB written"))
}

/// A path that is gone at the end, whatever happens.
struct ScratchFile(PathBuf);

impl Drop for ScratchFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn write(path: &Path, parameters: &File, round: u64) -> Result<(), String> {
    let wrong = |error| format!("cannot write {}: {error}", path.display());
    let mut file = FsFile::create(path).map_err(wrong)?;
    let mut block = vec![0; BLOCK];
    for number in 0..parameters.mib << 4 {
        fill(&mut block, key(parameters.seed, number, round));
        file.write_all(&block).map_err(wrong)?;
    }
    file.sync_all().map_err(wrong)
}

fn verify(path: &Path, parameters: &File, round: u64) -> Result<(), String> {
    let wrong = |error| format!("cannot read {}: {error}", path.display());
    let mut file = FsFile::open(path).map_err(wrong)?;
    let mut block = vec![0; BLOCK];
    for number in 0..parameters.mib << 4 {
        file.read_exact(&mut block).map_err(wrong)?;
        check(&block, key(parameters.seed, number, round))
            .map_err(|error| format!("block {number}: {error}"))?;
    }
    Ok(())
}
