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
    /// How long to wait until they are gone; 0s does not wait [default: 30s, or 20s more than the grace]
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
            return Ok(self.guests.clone());
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
        stop(&client, &names, &order, self.wait.unwrap_or(usual))?;
        self.asking
            .show(&json!({"stopped": names}), || said(&names, "stopped"))
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

/// Tells guests to stop, and waits until their manager has forgotten them, with a word every few seconds.
pub(super) fn stop(
    client: &Client,
    names: &[String],
    order: &StopOrder,
    most: Duration,
) -> Result<(), AskError> {
    let began = Instant::now();
    tell(names, |name| client.stop(name, order))?;
    let mut next_word = Duration::from_secs(2);
    while !most.is_zero() {
        let left = match client.guests() {
            Ok(guests) => guests,
            // A launcher's own manager ends with its last guest.
            Err(ClientError::Unreachable { .. } | ClientError::Garbled { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let left: Vec<_> = left.into_iter().map(|guest| guest.name).collect();
        let waited: Vec<_> = names.iter().filter(|name| left.contains(name)).cloned().collect();
        if waited.is_empty() {
            return Ok(());
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
    Ok(())
}

fn direct(which: &Which, asking: &Asking, (what, done): (&str, &str)) -> Result<(), AskError> {
    let client = asking.client()?;
    let names = which.names(&client)?;
    tell(&names, |name| client.direct(name, what))?;
    asking.show(&json!({ done: names }), || said(&names, done))
}

/// Tells each of `names`; those behind one that fails are told all the same, and the first failure is the answer.
fn tell(names: &[String], tell: impl Fn(&str) -> Result<GuestView, ClientError>) -> Result<(), ClientError> {
    let told: Vec<_> = names.iter().map(|name| tell(name)).collect();
    told.into_iter().try_for_each(|answer| answer.map(drop))
}

fn said(names: &[String], done: &str) -> String {
    match names {
        [] => "no guests\n".to_owned(),
        _ => format!("{done} {}\n", names.join(", ")),
    }
}
