//! What the agent can run, with parameters, defaults and limits.
//!
//! Written as JSON (`"run":"churn","mib":64`) or as words (`churn mib=64`), on the kernel's command line too
//! (`levy.run=churn levy.args=mib=64,seconds=5`).

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A named workload. Defaults are meant for a guest of 256 MiB.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "run", rename_all = "snake_case")]
pub enum Workload {
    /// Nothing at all.
    Idle(Idle),
    /// Touches a working set that grows and shrinks by phases.
    Toucher(Toucher),
    /// Fills memory with a seeded pattern, holds it and checks it.
    Fill(Fill),
    /// Rewrites pages and checks every byte of them, all the time.
    Churn(Churn),
    /// Writes a file, checks it and deletes it.
    File(File),
    /// Reads a file over and over, through the page cache.
    Reader(Reader),
    /// A redis server under a client that checks every value.
    Redis(Redis),
    /// An nginx server under clients that check every body.
    Nginx(Nginx),
    /// PostgreSQL under pgbench, then a check of the books.
    Pgbench(Pgbench),
    /// The dbench file server load.
    Dbench(Dbench),
}

macro_rules! parameters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            /// Seconds of measured work; a stop ends it earlier.
            pub seconds: u64,
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { seconds: 10, $($field: $default,)* }
            }
        }
    };
}

parameters! {
    /// Parameters of [`Workload::Idle`].
    Idle {}
}

parameters! {
    /// Parameters of [`Workload::Toucher`].
    Toucher {
        /// The working set in MiB, when there are no phases.
        mib: u64 = 32,
        /// Phases as `MIB@SECONDS` joined by `+`, as in `64@10+16@30`; they replace `mib` and `seconds`.
        phases: String = String::new(),
        /// Page touches per second; 0 is as many as possible.
        rate: u64 = 0,
        /// How many of 100 touches write.
        write_percent: u64 = 50,
        /// Seed of contents and order.
        seed: u64 = 1,
    }
}

parameters! {
    /// Parameters of [`Workload::Fill`].
    Fill {
        /// MiB to fill.
        mib: u64 = 32,
        /// How many different pages there are; 0 makes all different. Equal seeds give equal pages in all guests.
        distinct: u64 = 0,
        /// How many of 100 pages stay zero.
        zero_percent: u64 = 0,
        /// Seconds between checks while it is held; 0 checks only at the end and leaves the memory alone till then.
        check_every: u64 = 0,
        /// Seed of contents.
        seed: u64 = 1,
    }
}

parameters! {
    /// Parameters of [`Workload::Churn`].
    Churn {
        /// MiB of pages.
        mib: u64 = 32,
        /// Pages rewritten per second; 0 is as many as possible.
        rate: u64 = 0,
        /// Threads, each with its share of the pages.
        threads: u64 = 1,
        /// Seed of contents and order.
        seed: u64 = 1,
    }
}

parameters! {
    /// Parameters of [`Workload::File`].
    File {
        /// MiB to write.
        mib: u64 = 32,
        /// The directory; /run is memory, /var/tmp is the disk.
        dir: String = "/run".to_owned(),
        /// Seconds between writing and deleting, and between deleting and writing again.
        hold: u64 = 2,
        /// Seed of contents.
        seed: u64 = 1,
    }
}

parameters! {
    /// Parameters of [`Workload::Reader`].
    Reader {
        /// MiB of the file. It is written first, and stays for the next run with the same parameters.
        mib: u64 = 64,
        /// The directory; /run is memory, /var/tmp is the disk.
        dir: String = "/var/tmp".to_owned(),
        /// KiB of a block, which is what is read at a time.
        block_kib: u64 = 64,
        /// Times to read the file from its begin to its end, however long that takes; 0 reads blocks in random order.
        passes: u64 = 0,
        /// Seed of contents and order.
        seed: u64 = 1,
    }
}

parameters! {
    /// Parameters of [`Workload::Redis`].
    Redis {
        /// MiB of values in the database.
        mib: u64 = 16,
        /// Bytes of a value.
        value_bytes: u64 = 1024,
        /// Connections.
        clients: u64 = 2,
        /// Requests sent before their answers are read.
        pipeline: u64 = 8,
        /// Seed of contents and order.
        seed: u64 = 1,
    }
}

parameters! {
    /// Parameters of [`Workload::Nginx`].
    Nginx {
        /// Files served.
        files: u64 = 64,
        /// KiB of a file.
        file_kib: u64 = 64,
        /// Connections.
        clients: u64 = 2,
        /// Seed of contents and order.
        seed: u64 = 1,
    }
}

parameters! {
    /// Parameters of [`Workload::Pgbench`].
    Pgbench {
        /// pgbench's scale: 100,000 accounts, 15 MB each.
        scale: u64 = 1,
        /// Connections.
        clients: u64 = 2,
    }
}

parameters! {
    /// Parameters of [`Workload::Dbench`].
    Dbench {
        /// Client processes.
        clients: u64 = 2,
        /// The directory it works in.
        dir: String = "/var/tmp".to_owned(),
    }
}

/// A part of a toucher's schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// The working set in MiB.
    pub mib: u64,
    /// How long it is touched.
    pub seconds: u64,
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("a phase is MIB@SECONDS, not {text:?}");
        let (mib, seconds) = text.split_once('@').ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let phase = Self {
            mib: number(mib)?,
            seconds: number(seconds)?,
        };
        within("mib of a phase", phase.mib, 1, MAX_MIB)?;
        within("seconds of a phase", phase.seconds, 1, MAX_SECONDS)?;
        Ok(phase)
    }
}

impl Toucher {
    /// The schedule: the phases, or one phase of `mib` and `seconds`.
    ///
    /// # Errors
    /// A phase is not `MIB@SECONDS`.
    pub fn schedule(&self) -> Result<Vec<Phase>, String> {
        if self.phases.is_empty() {
            return Ok(vec![Phase {
                mib: self.mib,
                seconds: self.seconds,
            }]);
        }
        self.phases.split('+').map(str::parse).collect()
    }
}

const MAX_MIB: u64 = 1 << 22;
const MAX_SECONDS: u64 = 30 * 24 * 3600;

fn within(name: &str, value: u64, least: u64, most: u64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("{name} must be {least} to {most}, not {value}"))
}

impl Workload {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle(_) => "idle",
            Self::Toucher(_) => "toucher",
            Self::Fill(_) => "fill",
            Self::Churn(_) => "churn",
            Self::File(_) => "file",
            Self::Reader(_) => "reader",
            Self::Redis(_) => "redis",
            Self::Nginx(_) => "nginx",
            Self::Pgbench(_) => "pgbench",
            Self::Dbench(_) => "dbench",
        }
    }

    /// The name of the figures ([`Report::Stats`](crate::Report::Stats)) with which it says that it has set itself up; none
    /// where its first progress says so.
    #[must_use]
    pub fn set_up_word(&self) -> Option<&'static str> {
        match self {
            Self::Fill(_) => Some("filled"),
            Self::File(_) => Some("written"),
            Self::Reader(_) => Some("ready"),
            Self::Redis(_) | Self::Pgbench(_) => Some("loaded"),
            Self::Idle(_) | Self::Toucher(_) | Self::Churn(_) | Self::Nginx(_) | Self::Dbench(_) => None,
        }
    }

    /// Seconds of measured work asked for.
    pub fn seconds(&self) -> u64 {
        match self {
            Self::Idle(w) => w.seconds,
            Self::Toucher(w) => w
                .schedule()
                .map_or(w.seconds, |phases| phases.iter().map(|phase| phase.seconds).sum()),
            Self::Fill(w) => w.seconds,
            Self::Churn(w) => w.seconds,
            Self::File(w) => w.seconds,
            Self::Reader(w) => w.seconds,
            Self::Redis(w) => w.seconds,
            Self::Nginx(w) => w.seconds,
            Self::Pgbench(w) => w.seconds,
            Self::Dbench(w) => w.seconds,
        }
    }

    /// The workload called `name` with parameters `KEY=VALUE`.
    ///
    /// # Errors
    /// Unknown name or key, or a value out of range.
    pub fn from_words<'a>(name: &str, words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut fields = Map::new();
        for word in words {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| format!("a parameter is KEY=VALUE, not {word:?}"))?;
            let value = value
                .parse::<u64>()
                .map_or_else(|_| Value::from(value), Value::from);
            if fields.insert(key.to_owned(), value).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        fields.insert("run".to_owned(), name.into());
        Self::from_fields(fields)
    }

    pub(crate) fn from_fields(fields: Map<String, Value>) -> Result<Self, String> {
        let workload: Self = serde_json::from_value(Value::Object(fields))
            .map_err(|error| format!("not a workload: {error}"))?;
        workload.check()?;
        Ok(workload)
    }

    /// Checks every parameter's range.
    fn check(&self) -> Result<(), String> {
        within("seconds", self.seconds(), 1, MAX_SECONDS)?;
        let mib = |value| within("mib", value, 1, MAX_MIB);
        let clients = |value| within("clients", value, 1, 256);
        match self {
            Self::Idle(_) => Ok(()),
            Self::Toucher(w) => {
                mib(w.mib)?;
                w.schedule()?;
                within("write_percent", w.write_percent, 0, 100)
            }
            Self::Fill(w) => {
                mib(w.mib)?;
                within("zero_percent", w.zero_percent, 0, 100)
            }
            Self::Churn(w) => {
                mib(w.mib)?;
                within("threads", w.threads, 1, 64)
            }
            Self::File(w) => mib(w.mib),
            Self::Reader(w) => {
                mib(w.mib)?;
                within("block_kib", w.block_kib, 1, 1024)
            }
            Self::Redis(w) => {
                mib(w.mib)?;
                clients(w.clients)?;
                within("pipeline", w.pipeline, 1, 1024)?;
                within("value_bytes", w.value_bytes, 8, 1 << 20)
            }
            Self::Nginx(w) => {
                clients(w.clients)?;
                within("files", w.files, 1, 100_000)?;
                within("file_kib", w.file_kib, 1, 1 << 16)
            }
            Self::Pgbench(w) => {
                clients(w.clients)?;
                within("scale", w.scale, 1, 10_000)
            }
            Self::Dbench(w) => clients(w.clients),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_defaults() {
        let workload = Workload::from_words("toucher", ["phases=64@10+16@30", "rate=5"]).unwrap();
        assert_eq!(workload.seconds(), 40);
        let Workload::Toucher(toucher) = workload else {
            panic!("{workload:?}")
        };
        assert_eq!(toucher.schedule().unwrap()[1], Phase { mib: 16, seconds: 30 });
        assert_eq!((toucher.rate, toucher.write_percent), (5, 50));
    }

    #[test]
    fn bad_parameters_are_named() {
        for (name, word, names) in [
            ("fill", "mib=0", "mib"),
            ("fill", "mib=many", "many"),
            ("fill", "colour=3", "colour"),
            ("fill", "mib", "KEY=VALUE"),
            ("toucher", "phases=3@x", "3@x"),
            ("toucher", "phases=0@1", "mib"),
            ("redis", "clients=300", "300"),
            ("idle", "seconds=0", "seconds"),
        ] {
            let error = Workload::from_words(name, [word]).unwrap_err();
            assert!(error.contains(names), "{word}: {error}");
        }
        assert!(Workload::from_words("fill", ["mib=1", "mib=2"]).is_err());
    }
}
