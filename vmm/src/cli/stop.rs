//! `levy stop`, `levy pause` and `levy resume`: guests told what to do.

use std::time::{Duration, Instant};

use clap::builder::NonEmptyStringValueParser;
use serde_json::json;

use super::asking::{AskError, Asking, status};
use levy_launcher::api_client::{Client, ClientError};
use levy_machine::config;
use levy_machine::process::say;
use levy_protocol::api::{GuestView, StopOrder};

/// How often a guest that stops is looked for.
const LOOK: Duration = Duration::from_millis(200);

/// How long a stopped guest is waited for, and how much longer than its grace at least.
const WAIT: Duration = Duration::from_secs(30);
const BEYOND_GRACE: Duration = Duration::from_secs(20);

/// How long a manager takes at most to notice that a guest's process has ended.
const NOTICED: Duration = Duration::from_secs(2);

/// Shut down guests, and end those that have not shut down within 10 seconds.
#[derive(Clone, Debug, clap::Args)]
pub struct StopArgs {
    #[command(flatten)]
    which: Which,
    /// How long they may take to shut down before they are ended [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    grace: Option<Duration>,
    /// Kill their processes at once, whatever they do; what they have not written to their disks is lost
    #[arg(long, conflicts_with = "grace")]
    force: bool,
    /// How long to wait until they are gone; 0s only tells them [default: 30s, or 20s more than the grace]
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    asking: Asking,
}

/// Pause the virtual CPUs of guests until `levy resume`.
#[derive(Clone, Debug, clap::Args)]
pub struct PauseArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    asking: Asking,
}

/// Resume paused guests.
#[derive(Clone, Debug, clap::Args)]
pub struct ResumeArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    asking: Asking,
}

/// Some guests, or all.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The guests
    #[arg(value_name = "GUEST", value_parser = NonEmptyStringValueParser::new())]
    guests: Vec<String>,
    /// Every guest of the manager
    #[arg(long)]
    all: bool,
}

impl Which {
    fn names(&self, client: &Client) -> Result<Vec<String>, AskError> {
        if !self.all {
            let mut names = Vec::new();
            for name in &self.guests {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
            return Ok(names);
        }
        Ok(client.guests()?.into_iter().map(|guest| guest.name).collect())
    }
}

impl StopArgs {
    /// Stops; the exit status of the process.
    pub fn run(self) -> u8 {
        status(self.stop())
    }

    fn stop(self) -> Result<(), AskError> {
        let client = self.asking.client()?;
        let names = self.which.names(&client)?;
        let order = StopOrder {
            grace_ms: self
                .grace
                .map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)),
            force: self.force,
        };
        let usual = WAIT.max(self.grace.unwrap_or_default().saturating_add(BEYOND_GRACE));
        let most = self.wait.unwrap_or(usual);
        let told = stop(&client, &names, &order, most)?;
        told.show(&self.asking, word(most))
    }
}

impl PauseArgs {
    /// Pauses; the exit status of the process.
    pub fn run(self) -> u8 {
        status(direct(&self.which, &self.asking, ("pause", "paused")))
    }
}

impl ResumeArgs {
    /// Resumes; the exit status of the process.
    pub fn run(self) -> u8 {
        status(direct(&self.which, &self.asking, ("resume", "resumed")))
    }
}

/// Tells guests to stop, and waits until their manager has forgotten them, with a word every few seconds. Those that
/// could not be told are waited for a moment: a guest that has ended already is listed until its manager has noticed.
pub(super) fn stop(
    client: &Client,
    names: &[String],
    order: &StopOrder,
    most: Duration,
) -> Result<Told, AskError> {
    let began = Instant::now();
    let mut told = Told::by(names, |name| client.stop(name, order));
    told.wait_for_the_gone(client);
    let names = &told.done;
    let mut next_word = Duration::from_secs(2);
    while !most.is_zero() {
        let left = match client.guests() {
            Ok(guests) => guests,
            // A launcher's own manager ends with its last guest.
            Err(ClientError::Unreachable { .. } | ClientError::Garbled { .. }) => return Ok(told),
            Err(error) => return Err(error.into()),
        };
        let left: Vec<_> = left.into_iter().map(|guest| guest.name).collect();
        let waited: Vec<_> = names.iter().filter(|name| left.contains(name)).cloned().collect();
        if waited.is_empty() {
            return Ok(told);
        }
        if began.elapsed() >= most {
            return Err(AskError::StillThere {
                names: waited.join(", "),
                seconds: most.as_secs(),
            });
        }
        if began.elapsed() >= next_word {
            say(format_args!("waiting for {}", waited.join(", ")));
            next_word += Duration::from_secs(5);
        }
        std::thread::sleep(LOOK);
    }
    Ok(told)
}

/// What can be said of guests that were waited for `most` long.
pub(super) fn word(most: Duration) -> &'static str {
    if most.is_zero() { "told" } else { "stopped" }
}

fn direct(which: &Which, asking: &Asking, (what, done): (&str, &str)) -> Result<(), AskError> {
    let client = asking.client()?;
    let names = which.names(&client)?;
    Told::by(&names, |name| client.direct(name, what)).show(asking, done)
}

/// Guests that were told what to do, and those that could not be told.
#[derive(Debug, Default)]
pub(super) struct Told {
    done: Vec<String>,
    failed: Vec<(String, ClientError)>,
}

impl Told {
    /// Tells each of `names`; those behind one that fails are told all the same.
    fn by(names: &[String], tell: impl Fn(&str) -> Result<GuestView, ClientError>) -> Self {
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for name in names {
            match tell(name) {
                Ok(_) => done.push(name.clone()),
                Err(error) => failed.push((name.clone(), error)),
            }
        }
        Self { done, failed }
    }

    /// Counts others in.
    pub(super) fn add(&mut self, other: Self) {
        self.done.extend(other.done);
        self.failed.extend(other.failed);
    }

    /// Whether there was none to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.done.is_empty() && self.failed.is_empty()
    }

    /// Guests that were there and are not listed any more have ended by themselves: they are done.
    fn wait_for_the_gone(&mut self, client: &Client) {
        let began = Instant::now();
        let was_there = |error: &ClientError| !matches!(error, ClientError::Refused { status: 404, .. });
        while self.failed.iter().any(|(_, error)| was_there(error)) && began.elapsed() < NOTICED {
            let Ok(left) = client.guests() else { break };
            let gone = |name: &str| left.iter().all(|guest| guest.name != name);
            let ended = self
                .failed
                .extract_if(.., |(name, error)| was_there(error) && gone(name));
            self.done.extend(ended.map(|(name, _)| name));
            std::thread::sleep(LOOK);
        }
    }

    /// Shows who was told, and then fails with the first that was not.
    pub(super) fn show(self, asking: &Asking, word: &str) -> Result<(), AskError> {
        if self.failed.is_empty() || !self.done.is_empty() {
            asking.show(&json!({ word: self.done }), || match &self.done[..] {
                [] => "no guests\n".to_owned(),
                done => format!("{word} {}\n", done.join(", ")),
            })?;
        }
        let first = self.failed.into_iter().next();
        first.map_or(Ok(()), |(_, error)| Err(error.into()))
    }
}
