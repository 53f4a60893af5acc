//! The "newc" archive that the kernel unpacks as its first root (Documentation/driver-api/early-userspace/buffer-format).

use std::collections::BTreeSet;

/// Regular file, directory and character device, as in `stat.h`.
const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive under construction. Parent directories come by themselves.
#[derive(Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    device: (u32, u32),
    data: &'a [u8],
}

impl Cpio {
    /// A file that anybody may read, and run where `mode` says so.
    pub(crate) fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.parents(name);
        self.entry(&Entry {
            name,
            mode: FILE | mode,
            device: (0, 0),
            data,
        });
    }

    /// The console, which the kernel opens before anything is mounted.
    pub(crate) fn console(&mut self) {
        self.parents("dev/console");
        self.entry(&Entry {
            name: "dev/console",
            mode: CHARACTER_DEVICE | 0o600,
            device: (5, 1),
            data: &[],
        });
    }

    /// The finished archive, padded so that another may follow it.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry(&Entry {
            name: "TRAILER!!!",
            mode: 0,
            device: (0, 0),
            data: &[],
        });
        self.bytes
    }

    fn parents(&mut self, name: &str) {
        for (at, _) in name.match_indices('/') {
            let parent = &name[..at];
            if self.directories.insert(parent.to_owned()) {
                self.entry(&Entry {
                    name: parent,
                    mode: DIRECTORY | 0o755,
                    device: (0, 0),
                    data: &[],
                });
            }
        }
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        self.entries += 1;
        let length = u32::try_from(entry.data.len()).expect("files of a boot archive are small");
        let name_length = u32::try_from(entry.name.len() + 1).expect("names are short");
        // Magic, then: inode, mode, uid, gid, links, mtime, size, device of the file (2), device it is (2), name, check.
        let (major, minor) = entry.device;
        let fields = [
            self.entries,
            entry.mode,
            0,
            0,
            1,
            0,
            length,
            0,
            0,
            major,
            minor,
            name_length,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").into_bytes());
        }
        self.bytes.extend(entry.name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(entry.data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_documented_one() {
        let mut cpio = Cpio::default();
        cpio.file("a/b", 0o755, b"xyz");
        let bytes = cpio.finish();
        // Directory "a": 110 bytes of header, name and NUL, padded to 4.
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..112], b"a\0");
        let file = &bytes[112..];
        assert_eq!(&file[14..22], b"000081ed");
        assert_eq!(&file[54..62], b"00000003");
        assert_eq!(&file[110..120], &b"a/b\0\0\0xyz\0"[..10]);
        assert_eq!(bytes.len() % 4, 0);
    }
}
