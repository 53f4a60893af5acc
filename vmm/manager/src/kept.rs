//! What a manager leaves for the next one of the same run directory: who was admitted, and what was set.
//!
//! A guest outlives its manager. What it was promised, and what was set while it ran, stand in a file of the run
//! directory, which is complete before a guest learns that it is admitted. The next manager believes that file, which
//! it alone writes, and the kernel: process number and start time together name one process for as long as the machine
//! runs. It never believes the guest's word.
//!
//! A file that is of no use is set aside, not fatal: guests then introduce themselves as new ones. One that the system does
//! not let the manager read may be of use, and the manager does not start.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use super::guest_process::ProcessId;
use levy_protocol::link::GroupLimits;

/// Version of the file.
const FORMAT: u32 = 1;

/// How the end begins of the name of a file that is being written.
const NEW: &str = "new";

/// What the name of a file that is of no use ends with.
const SET_ASIDE: &str = "set-aside";

/// Bytes in the longest file that is read and written: a thousand guests take 400 KiB.
const MOST: u64 = 64 << 20;

/// All that is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    format: u32,
    /// The machine's boot: process numbers and start times of another one mean nothing.
    boot: String,
    /// What was set at run time.
    pub settings: KeptSettings,
    /// Groups that guests are in.
    pub groups: Vec<GroupLimits>,
    /// Admitted guests, in the order of admission.
    pub guests: Vec<KeptGuest>,
}

/// Settings that were changed at run time; those that were not are as the next manager is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptSettings {
    /// Memory for everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_bytes: Option<u64>,
    /// The idle-memory tax, 0 to below 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tax_percent: Option<f64>,
    /// Longest time between two plans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebalance_seconds: Option<f64>,
}

/// A guest and its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptGuest {
    /// Its name.
    pub name: String,
    /// Its process's number.
    pub pid: u32,
    /// When that started, in the kernel's clock ticks since the machine did.
    pub started: u64,
    /// Its configured size, bytes.
    pub size: u64,
    /// Its guaranteed memory, bytes.
    pub min: u64,
    /// Its shares.
    pub shares: u32,
    /// Its group's name.
    pub group: Option<String>,
    /// Its sharing domain's name.
    pub domain: Option<String>,
    /// The fleet file that it was started from.
    pub fleet: Option<String>,
    /// Its control socket.
    pub control: Option<String>,
    /// The version of the protocol that it spoke.
    pub protocol: u32,
}

impl KeptGuest {
    /// Which process it is.
    pub(super) fn process(&self) -> ProcessId {
        ProcessId {
            pid: self.pid,
            started: self.started,
        }
    }
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// It is a folder, a pipe or the like.
    #[error("it is not a regular file")]
    Kind,
    /// Another user owns it, and could have promised anything.
    #[error("it belongs to user {0}")]
    Owner(u32),
    /// No manager writes so much.
    #[error("it has {0} bytes, more than any manager writes")]
    Size(u64),
    /// It is cut off, or damaged.
    #[error("it is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// A newer manager wrote it.
    #[error("it is of format {0}, this manager knows format {FORMAT}")]
    Format(u32),
}

impl Kept {
    /// Nothing yet.
    pub fn new(settings: KeptSettings, groups: Vec<GroupLimits>, guests: Vec<KeptGuest>) -> Self {
        Self {
            format: FORMAT,
            boot: boot(),
            settings,
            groups,
            guests,
        }
    }

    /// Reads what the manager before left at `path`; `None` where there was none. Guests of another boot are left out.
    ///
    /// # Errors
    /// See [`KeptError`].
    pub fn read(path: &Path) -> Result<Option<Self>, KeptError> {
        let mut options = OpenOptions::new();
        // A pipe in its place must not hold the manager up, and a link must not lead elsewhere.
        options
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Err(KeptError::Kind),
            other => other?,
        };
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(KeptError::Kind);
        }
        if about.uid() != rustix::process::getuid().as_raw() {
            return Err(KeptError::Owner(about.uid()));
        }
        if about.len() > MOST {
            return Err(KeptError::Size(about.len()));
        }
        let mut text = Vec::new();
        file.take(MOST).read_to_end(&mut text)?;
        Self::parse(&text, &boot()).map(Some)
    }

    fn parse(text: &[u8], boot: &str) -> Result<Self, KeptError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(text)?;
        if format != FORMAT {
            return Err(KeptError::Format(format));
        }
        let mut kept: Self = serde_json::from_slice(text)?;
        if kept.boot != boot {
            kept.groups.clear();
            kept.guests.clear();
        }
        Ok(kept)
    }

    /// Puts this in the place of what is at `path`: all of it or nothing, whatever happens meanwhile.
    ///
    /// # Errors
    /// When the file system refuses, or no manager would read so much; what was there stays.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        if text.len() as u64 > MOST {
            return Err(io::Error::other(format!(
                "{} bytes are more than the next manager reads",
                text.len()
            )));
        }
        let (mut file, new) = create_beside(path)?;
        let written = file
            .write_all(&text)
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&new, path));
        if let Err(error) = written {
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        // The name is only as durable as its folder.
        path.parent()
            .map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

/// A new file beside `path`, under a name that is not guessed: where the folder is one like /tmp, other users may put
/// anything under one that is.
fn create_beside(path: &Path) -> io::Result<(File, PathBuf)> {
    let new = unguessed(path, NEW)?;
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&new)?;
    Ok((file, new))
}

/// Removes what managers that were killed have left beside `path`, as far as the file system lets this one.
pub(super) fn remove_leftovers(path: &Path) {
    let Some((folder, begin)) = path
        .parent()
        .zip(beside(path, NEW).file_name().map(OsStr::to_owned))
    else {
        return;
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(begin.as_bytes()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Moves a file that is of no use out of the way, and returns where it is now.
///
/// # Errors
/// When the file system refuses.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let usual = beside(path, SET_ASIDE);
    if fs::rename(path, &usual).is_ok() {
        return Ok(usual);
    }
    // Something is in the way that gives no way, such as a folder.
    let other = unguessed(path, SET_ASIDE)?;
    fs::rename(path, &other)?;
    Ok(other)
}

/// A name beside `path` that others cannot have made beforehand.
fn unguessed(path: &Path, suffix: &str) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(beside(
        path,
        &format!("{suffix}.{:016x}", u64::from_ne_bytes(random)),
    ))
}

/// What names the machine's present boot; empty where the kernel does not say, which is then no other boot.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Kept {
        let settings = KeptSettings {
            budget_bytes: Some(5 << 20),
            tax_percent: Some(12.5),
            rebalance_seconds: None,
        };
        let guest = KeptGuest {
            name: "web-1".into(),
            pid: 7,
            started: 99,
            size: 64 << 20,
            min: 16 << 20,
            shares: 2000,
            group: Some("web".into()),
            domain: None,
            fleet: None,
            control: Some("/run/x".into()),
            protocol: 3,
        };
        let group = GroupLimits {
            name: "web".into(),
            shares: 500,
            min: 0,
            max: Some(1 << 30),
        };
        Kept::new(settings, vec![group], vec![guest])
    }

    #[test]
    fn what_others_put_in_its_way_is_not_written_to_and_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.json");
        let file = |path: &Path| fs::symlink_metadata(path).unwrap();
        let [theirs, folder, pipe] = ["new", "new.0", "new.1"].map(|suffix| beside(&path, suffix));
        fs::write(&theirs, "theirs").unwrap();
        fs::create_dir(&folder).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            0o666.into(),
            0,
        )
        .unwrap();
        some().write(&path).unwrap();
        assert!(file(&path).is_file() && file(&path).ino() != file(&theirs).ino());
        assert_eq!(fs::read(&theirs).unwrap(), b"theirs");
        assert_eq!(Kept::read(&path).unwrap(), Some(some()));
        // What a manager leaves that is killed while it writes goes with the start of the next one.
        remove_leftovers(&path);
        assert!(!theirs.exists() && !pipe.exists() && folder.exists());
        assert_eq!(Kept::read(&path).unwrap(), Some(some()));
    }

    #[test]
    fn what_is_kept_is_read_as_it_was_written_and_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.json");
        assert_eq!(Kept::read(&path).unwrap(), None);
        some().write(&path).unwrap();
        assert_eq!(Kept::read(&path).unwrap(), Some(some()));
        assert!(fs::read(&path).unwrap().ends_with(b"}\n"), "it is a text file");
        let mode = fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        Kept::new(KeptSettings::default(), Vec::new(), Vec::new())
            .write(&path)
            .unwrap();
        assert!(Kept::read(&path).unwrap().unwrap().guests.is_empty());
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn a_write_that_fails_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        // One beside it has a longer name than any file.
        let path = dir.path().join("k".repeat(250));
        fs::write(&path, serde_json::to_vec(&some()).unwrap()).unwrap();
        let other = Kept::new(KeptSettings::default(), Vec::new(), Vec::new());
        assert!(other.write(&path).is_err());
        assert_eq!(Kept::read(&path).unwrap(), Some(some()));
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.json");
        some().write(&path).unwrap();
        let mut more = some();
        more.guests[0].control = Some("x".repeat(MOST as usize));
        let error = more.write(&path).unwrap_err().to_string();
        assert!(error.contains("more than the next manager reads"), "{error}");
        assert_eq!(Kept::read(&path).unwrap(), Some(some()));
    }

    #[test]
    fn every_way_of_being_cut_off_or_damaged_is_an_error_and_no_panic() {
        let text = serde_json::to_vec(&some()).unwrap();
        let boot = boot();
        assert!(Kept::parse(&text, &boot).is_ok());
        for length in 0..text.len() {
            assert!(
                Kept::parse(&text[..length], &boot).is_err(),
                "cut off at {length}"
            );
        }
        let text = String::from_utf8(text).unwrap();
        for (from, to) in [
            ("\"pid\":7", "\"pid\":-7"),
            ("\"name\"", "\"nome\""),
            ("2000", "20e99"),
        ] {
            assert!(text.contains(from));
            let damaged = text.replace(from, to);
            assert!(
                matches!(Kept::parse(damaged.as_bytes(), &boot), Err(KeptError::Damaged(_))),
                "{damaged}"
            );
        }
        let newer = text.replace("\"format\":1", "\"format\":2,\"more\":[]");
        assert!(matches!(
            Kept::parse(newer.as_bytes(), &boot),
            Err(KeptError::Format(2))
        ));
    }

    #[test]
    fn guests_of_another_boot_are_gone_and_settings_stay() {
        let text = serde_json::to_vec(&some()).unwrap();
        let kept = Kept::parse(&text, "another").unwrap();
        assert_eq!((kept.guests.len(), kept.groups.len()), (0, 0));
        assert_eq!(kept.settings, some().settings);
    }

    #[test]
    fn what_is_no_file_of_ours_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.json");
        fs::create_dir(&path).unwrap();
        assert!(matches!(Kept::read(&path), Err(KeptError::Kind)));
        fs::remove_dir(&path).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        some().write(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(matches!(Kept::read(&path), Err(KeptError::Kind)));
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert!(matches!(Kept::read(&path), Err(KeptError::Kind)));
        fs::remove_file(&path).unwrap();
        some().write(&path).unwrap();
        // Only root can give a file away.
        if std::os::unix::fs::chown(&path, Some(12345), None).is_ok() {
            assert!(matches!(Kept::read(&path), Err(KeptError::Owner(12345))));
        }
        let aside = set_aside(&path).unwrap();
        assert!(aside.exists() && !path.exists());
    }
}
