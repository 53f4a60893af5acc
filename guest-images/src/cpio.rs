//! Writing cpio archives in the form the kernel unpacks ("newc", Documentation/driver-api/early-userspace/buffer-format),
//! the same bytes for the same input.

use std::collections::BTreeSet;

/// An archive being written, to be unpacked by a kernel as its first root. Times are 0, owners are root, inode numbers
/// count up. Names have no leading slash; the directories above an entry come by themselves.
#[derive(Debug, Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

const DIR: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHAR_DEVICE: u32 = 0o020_000;

/// What stands in the header of an entry.
#[derive(Default)]
struct Entry<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl Cpio {
    /// A directory.
    pub fn dir(&mut self, name: &str) {
        self.parents(name);
        if !self.directories.insert(name.to_owned()) {
            return;
        }
        self.entry(&Entry {
            name,
            mode: DIR | 0o755,
            ..Entry::default()
        });
    }

    /// An executable file.
    pub fn program(&mut self, name: &str, content: &[u8]) {
        self.parents(name);
        self.entry(&Entry {
            name,
            mode: FILE | 0o755,
            content,
            ..Entry::default()
        });
    }

    /// A file that cannot be run.
    pub fn file(&mut self, name: &str, content: &[u8]) {
        self.parents(name);
        self.entry(&Entry {
            name,
            mode: FILE | 0o644,
            content,
            ..Entry::default()
        });
    }

    /// A symbolic link.
    pub fn link(&mut self, name: &str, target: &str) {
        self.parents(name);
        self.entry(&Entry {
            name,
            mode: LINK | 0o777,
            content: target.as_bytes(),
            ..Entry::default()
        });
    }

    /// A character device.
    pub fn char_device(&mut self, name: &str, device: (u32, u32)) {
        self.parents(name);
        self.entry(&Entry {
            name,
            mode: CHAR_DEVICE | 0o600,
            device,
            ..Entry::default()
        });
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(&Entry {
            name: "TRAILER!!!",
            ..Entry::default()
        });
        self.bytes
    }

    fn parents(&mut self, name: &str) {
        for (at, _) in name.match_indices('/') {
            self.dir(&name[..at]);
        }
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        self.entries += 1;
        let inode = self.entries;
        let size = u32::try_from(entry.content.len()).expect("a file of an initramfs is below 4 GiB");
        let name_size = entry.name.len() as u32 + 1;
        let (major, minor) = entry.device;
        // ino mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor namesize check
        let fields = [
            inode, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(entry.name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(entry.content);
        self.pad();
    }

    /// Names and contents end at multiples of four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_kernels_form() {
        let mut cpio = Cpio::default();
        cpio.char_device("dev/console", (5, 1));
        cpio.file("a", b"xyz");
        let bytes = cpio.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 4);
        assert!(text.starts_with("07070100000001000041ED"), "{text}");
        assert!(text.contains("0000000500000001"), "console is 5, 1");
        let at = text.find("a\0").unwrap();
        // The header and name of "a" take 110 + 2 bytes, a multiple of four.
        assert_eq!(&text[at + 2..at + 6], "xyz\0");
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
    }
}
