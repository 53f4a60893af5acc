//! What may be promised as swap.

use std::io;
use std::path::Path;

use allocator::Pages;
use rustix::fs::{Mode, OFlags};

/// How much swap may be promised: what is free where swap files go.
///
/// # Errors
/// When there is no such directory, or it is something else.
pub fn backing(swap: &Path) -> io::Result<Pages> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let room = rustix::fs::fstatvfs(rustix::fs::open(swap, flags, Mode::empty())?)?;
    Ok(Pages::new(room.f_bavail.saturating_mul(room.f_frsize) / 4096).min(Pages::LIMIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backing_is_what_the_file_system_has_free() {
        assert!(backing(Path::new("/var/tmp")).unwrap() > Pages::ZERO);
        for no_folder in ["/no/such/place", "/dev/null"] {
            assert!(backing(Path::new(no_folder)).is_err(), "{no_folder}");
        }
    }
}
