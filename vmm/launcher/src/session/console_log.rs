//! The end of a guest's console, as it lies in a file that its process writes: never all of a file that may have any
//! length.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes that are read of the file at most: all that a process keeps there, if it does as it should.
const MOST: u64 = levy_machine::vm::SERIAL_LOG_BYTES;
/// Bytes in which the last lines are looked for.
const TAIL: u64 = 64 << 10;
/// Bytes of a line that are shown.
const LINE: usize = 400;

/// The newest of the console at `path`; empty where it cannot be read.
pub(super) fn newest(path: &Path) -> String {
    text(path, MOST)
}

/// The last `count` lines that say something, each with its first [`LINE`] bytes.
pub(super) fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let text = text(path, TAIL);
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    let all: Vec<_> = lines.collect();
    let last = &all[all.len().saturating_sub(count)..];
    last.iter()
        .map(|line| line[..line.floor_char_boundary(LINE)].to_owned())
        .collect()
}

fn text(path: &Path, most: u64) -> String {
    let bytes = end_of(path, most).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn end_of(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn of_a_console_without_end_the_end_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!((newest(&path), last_lines(&path, 3)), (String::new(), Vec::new()));
        let file = File::create(&path).unwrap();
        // A hole of a TiB: reading it all would take longer than any test.
        let end = format!("\none\n\ntwo  \n{}\n", "ü".repeat(1000));
        file.write_all_at(end.as_bytes(), 1 << 40).unwrap();
        assert!(newest(&path).ends_with(&end) && newest(&path).len() as u64 <= MOST);
        let lines = last_lines(&path, 3);
        assert_eq!(lines, ["one".to_owned(), "two".to_owned(), "ü".repeat(LINE / 2)]);
    }
}
