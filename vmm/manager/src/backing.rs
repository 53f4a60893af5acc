//! What may be promised as swap.

use std::io;
use std::path::Path;

use allocator::Pages;

/// How much swap may be promised: what is free where swap files go.
///
/// # Errors
/// When there is no such directory.
pub fn backing(swap: &Path) -> io::Result<Pages> {
    let room = rustix::fs::statvfs(swap)?;
    Ok(Pages::new(room.f_bavail.saturating_mul(room.f_frsize) / 4096).min(Pages::LIMIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backing_is_what_the_file_system_has_free() {
        assert!(backing(Path::new("/var/tmp")).unwrap() > Pages::ZERO);
        assert!(backing(Path::new("/no/such/place")).is_err());
    }
}
