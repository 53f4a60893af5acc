//! The kernel's own same-page merging: its settings, its savings, and the CPU of its thread.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use levy_machine::process::say;

/// Where its settings are.
const SETTINGS: &str = "/sys/kernel/mm/ksm";

/// What is changed for a bench and put back afterwards, in the order of putting back.
const CHANGED: [&str; 3] = ["pages_to_scan", "sleep_millisecs", "run"];

/// Same-page merging, lent for a bench. Dropping it puts its settings back.
#[derive(Debug)]
pub(super) struct Ksm {
    before: Vec<(PathBuf, String)>,
    thread: Ksmd,
}

impl Ksm {
    /// Takes over the settings; nothing is merged for now.
    ///
    /// # Errors
    /// When this kernel has none, this process may not change them, or another process uses them already.
    pub(super) fn borrow() -> Result<Self, String> {
        let read = |name: &str| {
            let file = Path::new(SETTINGS).join(name);
            match std::fs::read_to_string(&file) {
                Ok(text) => Ok((file, text.trim().to_owned())),
                Err(e) => Err(format!(
                    "the kernel's same-page merging is not there: {}: {e}",
                    file.display()
                )),
            }
        };
        let before: Vec<_> = CHANGED.iter().map(|name| read(name)).collect::<Result<_, _>>()?;
        let (_, merged) = read("pages_shared")?;
        if merged != "0" {
            return Err(format!(
                "the kernel merges {merged} pages of other programs already; a comparison would count them. End those \
                 programs first"
            ));
        }
        let thread = Ksmd::find().map_err(|e| format!("cannot look for ksmd in /proc: {e}"))?;
        let ksm = Self {
            before,
            thread: thread.ok_or("the kernel's thread ksmd is not there")?,
        };
        ksm.write("run", 0)?;
        Ok(ksm)
    }

    /// Merges from now on: `pages` at a time, 20 ms between.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn start(&self, pages: u64) -> Result<(), String> {
        self.write("pages_to_scan", pages)?;
        self.write("sleep_millisecs", 20)?;
        self.write("run", 1)
    }

    /// Pages saved: places that use a page which some other place uses too, and zeros.
    pub(super) fn saved_pages(&self) -> u64 {
        let number = |name: &str| {
            let text = std::fs::read_to_string(Path::new(SETTINGS).join(name)).unwrap_or_default();
            text.trim().parse::<u64>().unwrap_or_default()
        };
        number("pages_sharing") + number("ksm_zero_pages")
    }

    /// CPU that its thread has used since the kernel started, seconds.
    pub(super) fn cpu_seconds(&self) -> f64 {
        self.thread.cpu().unwrap_or_default().as_secs_f64()
    }

    fn write(&self, name: &str, value: u64) -> Result<(), String> {
        let file = Path::new(SETTINGS).join(name);
        std::fs::write(&file, value.to_string())
            .map_err(|e| format!("cannot set {}: {e}; be root", file.display()))
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        for (file, value) in &self.before {
            if let Err(error) = std::fs::write(file, value) {
                say(format_args!(
                    "{} could not be set back to {value}: {error}",
                    file.display()
                ));
            }
        }
    }
}

/// The kernel's thread that merges pages.
#[derive(Debug)]
pub struct Ksmd(PathBuf);

impl Ksmd {
    /// Looks for it in /proc; none in a kernel without same-page merging. Kernel threads are few and come early.
    ///
    /// # Errors
    /// When /proc cannot be listed.
    pub fn find() -> io::Result<Option<Self>> {
        for entry in std::fs::read_dir("/proc")? {
            let path = entry?.path();
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            if name.trim() == "ksmd" {
                return Ok(Some(Self(path.join("schedstat"))));
            }
        }
        Ok(None)
    }

    /// CPU time that it has used since the kernel started.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn cpu(&self) -> io::Result<Duration> {
        let text = std::fs::read_to_string(&self.0)?;
        let nanoseconds = text.split_whitespace().next().and_then(|word| word.parse().ok());
        nanoseconds.map(Duration::from_nanos).ok_or_else(|| {
            let what = format!("{} does not start with a number", self.0.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        })
    }
}
