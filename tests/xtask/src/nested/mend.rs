//! Debian's QEMU without the flaw that delivers an injected interrupt twice (docs/nested.md).
//!
//! `helper_vmrun` leaves the vector in `exception_index` after it has delivered the interrupt; an exit of the CPU loop that
//! comes at the wrong moment then delivers it again, and the guest's kernel dies. Without the store the index stays at
//! "nothing", which is what it should be. Only the copy in the image cache is changed, and only where the machine code is
//! the one that is known.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What is done before an interrupt is delivered: `exception_index` = vector, `exception_is_int` = 0,
/// `exception_next_eip` = -1. In Debian's 10.0.2 it is there once.
const FLAW: [u8; 27] = [
    0x89, 0xb3, 0x10, 0xd7, 0xff, 0xff, // mov %esi,-0x28f0(%rbx)
    0xc7, 0x83, 0xe4, 0x33, 0, 0, 0, 0, 0, 0, // movl $0,0x33e4(%rbx)
    0x48, 0xc7, 0x83, 0xe8, 0x33, 0, 0, 0xff, 0xff, 0xff, 0xff, // movq $-1,0x33e8(%rbx)
];

/// An instruction that does nothing, as long as the store.
const NOTHING: [u8; 6] = [0x66, 0x0f, 0x1f, 0x44, 0, 0];

/// The mended copy of `program`, made beside it at first use; `program` itself where the flaw is not found.
pub(super) fn mended(program: &Path) -> Result<PathBuf> {
    let copy = program.with_extension("mended");
    if copy.is_file() {
        return Ok(copy);
    }
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let Some(bytes) = without_flaw(bytes) else {
        eprintln!(
            "nested: this QEMU is not the known one and stays as it is; rarely, a guest's kernel may panic \
             (docs/nested.md, interrupts delivered twice)"
        );
        return Ok(program.to_owned());
    };
    let directory = program.parent().context("QEMU has no folder")?;
    let mut aside = tempfile::NamedTempFile::new_in(directory)?;
    aside.write_all(&bytes)?;
    aside
        .as_file()
        .set_permissions(fs::Permissions::from_mode(0o755))?;
    aside
        .persist(&copy)
        .with_context(|| format!("cannot write {}", copy.display()))?;
    Ok(copy)
}

/// `program` without the store; `None` unless it is there exactly once.
fn without_flaw(mut program: Vec<u8>) -> Option<Vec<u8>> {
    let mut places = places_of_flaw(&program);
    let (Some(at), None) = (places.next(), places.next()) else {
        return None;
    };
    drop(places);
    program[at..at + NOTHING.len()].copy_from_slice(&NOTHING);
    Some(program)
}

/// Where the flaw is.
fn places_of_flaw(program: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let windows = program.windows(FLAW.len()).enumerate();
    windows.filter(|(_, window)| *window == FLAW).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_goes_where_it_is_there_once_and_nothing_else_changes() {
        let program = [&[1, 2, 3][..], &FLAW, &[4]].concat();
        let mended = without_flaw(program.clone()).unwrap();
        assert_eq!(mended.len(), program.len());
        assert_eq!(mended[3..9], NOTHING);
        assert_eq!(mended[9..], program[9..]);
        assert_eq!(mended[..3], program[..3]);
        assert_eq!(without_flaw(mended), None);
        assert_eq!(without_flaw([program.clone(), program].concat()), None);
    }
}
