//! The file that the next manager reads, and whether it is up to date.

use std::path::{Path, PathBuf};

use super::kept::{self, Kept, KeptError, KeptSettings};
use super::manager::Snapshot;
use super::sockets::HostError;

/// Writes the file. See [`super::kept`].
#[derive(Debug)]
pub(super) struct Keeper {
    path: PathBuf,
    settings: KeptSettings,
    /// Why the last attempt failed, if it did.
    failure: Option<String>,
}

impl Keeper {
    /// Keeps at `path`, and returns what the manager before kept there. A file that is of no use is said and set aside.
    ///
    /// # Errors
    /// When the system does not let this process read it: it may be of use all the same.
    pub(super) fn open(path: &Path, settings: KeptSettings) -> Result<(Self, Option<Kept>), HostError> {
        let keeper = Self {
            path: path.to_owned(),
            settings,
            failure: None,
        };
        kept::remove_leftovers(path);
        match Kept::read(path) {
            Ok(before) => Ok((keeper, before)),
            Err(KeptError::Io(source)) => Err(HostError::Kept {
                path: path.to_owned(),
                source,
            }),
            Err(error) => {
                set_aside(path, &error);
                Ok((keeper, None))
            }
        }
    }

    /// Settings that were changed.
    pub(super) fn change(&mut self, change: KeptSettings) {
        let now = &mut self.settings;
        now.budget_bytes = change.budget_bytes.or(now.budget_bytes);
        now.tax_percent = change.tax_percent.or(now.tax_percent);
        now.rebalance_seconds = change.rebalance_seconds.or(now.rebalance_seconds);
    }

    /// Writes all anew.
    pub(super) fn write(&mut self, snapshot: &Snapshot) {
        let kept = Kept::new(self.settings, snapshot.groups.clone(), snapshot.guests.clone());
        let written = kept.write(&self.path);
        let failure = written.err().map(|error| {
            format!(
                "{} cannot be written: {error}; if this manager ends, the next one takes its guests for new ones",
                self.path.display()
            )
        });
        match (&self.failure, &failure) {
            (None, Some(failure)) => log::error!("{failure}"),
            (Some(_), None) => log::info!("{} can be written again", self.path.display()),
            _ => {}
        }
        self.failure = failure;
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.clone()
    }
}

fn set_aside(path: &Path, error: &KeptError) {
    let aside = match kept::set_aside(path) {
        Ok(aside) => format!("it is now {}", aside.display()),
        Err(error) => format!("nor can it be moved away: {error}"),
    };
    log::error!(
        "what the manager before left at {} is of no use: {}; {aside}; its guests are taken for new ones, and settings are \
         as this manager was started",
        path.display(),
        levy_protocol::error_chain(error)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_set_aside_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.json");
        std::fs::write(&path, "{\"format\":").unwrap();
        let (mut keeper, before) = Keeper::open(&path, KeptSettings::default()).unwrap();
        assert_eq!(before, None);
        assert!(!path.exists() && dir.path().join("kept.json.set-aside").exists());
        keeper.write(&Snapshot::default());
        assert_eq!(keeper.failure(), None);
        assert!(Kept::read(&path).unwrap().is_some());
    }

    #[test]
    fn what_cannot_be_read_is_kept_whatever_is_in_its_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.json");
        std::fs::create_dir(dir.path().join("kept.json.set-aside")).unwrap();
        std::fs::write(&path, "damaged").unwrap();
        let (mut keeper, _) = Keeper::open(&path, KeptSettings::default()).unwrap();
        keeper.write(&Snapshot::default());
        assert_eq!(keeper.failure(), None);
        let files = std::fs::read_dir(dir.path()).unwrap().flatten();
        let damaged = files.filter(|file| std::fs::read(file.path()).is_ok_and(|text| text == b"damaged"));
        assert_eq!(damaged.count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_said_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.json");
        let (mut keeper, _) = Keeper::open(&path, KeptSettings::default()).unwrap();
        // No file takes the place of a folder.
        std::fs::create_dir(&path).unwrap();
        keeper.write(&Snapshot::default());
        assert!(keeper.failure().unwrap().contains("kept.json"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::remove_dir(&path).unwrap();
        keeper.change(KeptSettings {
            tax_percent: Some(5.0),
            ..KeptSettings::default()
        });
        keeper.change(KeptSettings {
            budget_bytes: Some(7),
            ..KeptSettings::default()
        });
        keeper.write(&Snapshot::default());
        assert_eq!(keeper.failure(), None);
        let settings = Kept::read(&path).unwrap().unwrap().settings;
        assert_eq!(
            (settings.tax_percent, settings.budget_bytes),
            (Some(5.0), Some(7))
        );
    }
}
