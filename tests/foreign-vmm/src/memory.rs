//! The guest's memory: what is where, and whether every byte is what was left there.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, ensure};
use ring3::{Guest, PAGE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Memory as the devices of rust-vmm see it.
pub(crate) type View = Arc<GuestMemoryMmap>;

/// The balloon's rings.
pub(crate) const RINGS: Range<u32> = 0..1024;
/// What the guest is loaded with. Other guests have the same.
const IMAGE: Range<u32> = 1024..5120;
/// What the guest fills once, no page like another, and never touches again.
pub(crate) const FILLED: Range<u32> = 5120..10_240;
/// What the guest changes and checks all the time.
pub(crate) const CHURNED: Range<u32> = 10_240..12_288;
/// What the guest has used and needs no more.
pub(crate) const FREE: Range<u32> = 12_288..16_384;
/// Bytes in all.
pub(crate) const BYTES: usize = FREE.end as usize * PAGE;

/// Maps the memory, and loads `image` into it.
pub(crate) fn load(image: &[u8]) -> Result<View> {
    ensure!(image.len() == IMAGE.len() * PAGE, "an image has 16 MiB");
    let view = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), BYTES)])?;
    view.write_slice(image, address(IMAGE.start))?;
    Ok(Arc::new(view))
}

/// Compares all that the guest keeps with what it must be, once it has stopped; the number of bytes.
pub(crate) fn check(view: &View, image: &[u8], cpus: &Guest) -> Result<usize> {
    let mut found = [0; PAGE];
    for page in IMAGE.start..FREE.start {
        view.read_slice(&mut found, address(page))?;
        let word = u64::from(page) + 1;
        let is_right = match page {
            _ if page < IMAGE.end => found == image[(page - IMAGE.start) as usize * PAGE..][..PAGE],
            _ if page < FILLED.end => found.chunks(8).all(|bytes| bytes == word.to_le_bytes()),
            _ => found.chunks(8).eq(cpus.churned(page).map(u64::to_le_bytes)),
        };
        ensure!(is_right, "page {page} is not what was left there");
    }
    Ok((FREE.start - IMAGE.start) as usize * PAGE)
}

fn address(page: u32) -> GuestAddress {
    GuestAddress(u64::from(page) * PAGE as u64)
}
