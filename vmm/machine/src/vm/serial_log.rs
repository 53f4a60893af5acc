//! A file with the newest of what a guest's console says.
//!
//! A guest can write to its console for as long as it runs, and the file may lie on a tmpfs, which is memory that no
//! budget counts. So the file holds [`MOST`] bytes at most. When they are reached, the older half goes, and the file
//! begins with a line that says how much is gone.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// Bytes that the file holds at most.
pub const MOST: u64 = 1 << 20;
/// Bytes of it that stay when the oldest go.
const KEPT: u64 = MOST / 2;

/// The file, from its begin.
#[derive(Debug)]
pub struct SerialLog {
    file: File,
    len: u64,
    dropped: u64,
    /// Bytes of the line that says so, at the file's begin.
    note: u64,
}

impl SerialLog {
    /// Writes to `file`, which is regular and open for reading and writing, and empties it.
    ///
    /// # Errors
    /// When it cannot be emptied.
    pub fn new(file: File) -> io::Result<Self> {
        file.set_len(0)?;
        Ok(Self {
            file,
            len: 0,
            dropped: 0,
            note: 0,
        })
    }

    /// Drops all but the newest [`KEPT`] bytes.
    fn drop_oldest(&mut self) -> io::Result<()> {
        let oldest = self.len.saturating_sub(KEPT);
        let mut kept = vec![0; (self.len - oldest) as usize];
        self.file.read_exact_at(&mut kept, oldest)?;
        let dropped = self.dropped + oldest.saturating_sub(self.note);
        let note = format!("[levy: {dropped} older bytes of the console were dropped]\n");
        let whole = [note.as_bytes(), &kept].concat();
        self.file.write_all_at(&whole, 0)?;
        self.file.set_len(whole.len() as u64)?;
        (self.len, self.dropped, self.note) = (whole.len() as u64, dropped, note.len() as u64);
        Ok(())
    }
}

impl Write for SerialLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A piece that is longer than what is kept comes in several writes.
        let bytes = &bytes[..bytes.len().min(KEPT as usize / 2)];
        if self.len + bytes.len() as u64 > MOST {
            self.drop_oldest()?;
        }
        let written = self.file.write_at(bytes, self.len)?;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_much_is_said_the_file_is_bounded_and_ends_with_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
        };
        std::fs::write(&path, "of another guest").unwrap();
        let mut log = SerialLog::new(open().unwrap()).unwrap();
        log.write_all(b"first\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first\n");
        let mut said = 6_u64;
        for number in 0..40_000 {
            let line = format!("line {number} {}\n", "x".repeat(number % 300));
            log.write_all(line.as_bytes()).unwrap();
            said += line.len() as u64;
            assert!(std::fs::metadata(&path).unwrap().len() <= MOST);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let (note, rest) = text.split_once('\n').unwrap();
        let dropped: u64 = note.split(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(dropped + rest.len() as u64, said);
        assert!(rest.len() as u64 >= KEPT && text.contains("\nline 39998 "));
        assert!(text.trim_end_matches(['x', '\n']).ends_with("line 39999 "));
    }

    #[test]
    fn one_piece_of_any_length_fits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let mut log = SerialLog::new(file).unwrap();
        log.write_all(&vec![b'y'; 5 << 20]).unwrap();
        let len = std::fs::metadata(&path).unwrap().len();
        assert!((KEPT..=MOST).contains(&len), "{len}");
    }
}
