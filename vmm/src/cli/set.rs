//! `levy set`: other limits and settings while guests run.

use super::asking::{AskError, Asking, status};
use super::{ls, table};
use levy_machine::config;
use levy_machine::process::say;
use levy_protocol::api::{GroupChange, GuestChange, HostChange};

const EXAMPLES: &str = "\
Examples:
  levy set web-1 shares=high min=256M     a guest's claim to memory: low, normal, high or a number; its guarantee
  levy set --group web shares=high max=1G  the same for a group of guests, and what they never exceed together
  levy set budget=2G                      memory for all guests together
  levy set tax=50 rebalance=5s            the idle-memory tax in percent; longest time between two plans
A guest's max is its size, and is set when it is started. What would break a promise made to a guest is refused.";

/// Change a guest's limits, or the manager's settings, while guests run.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct SetArgs {
    /// The guest, then what to change: shares=, min=. Without a guest: budget=, tax=, rebalance=
    #[arg(required = true, value_name = "[GUEST] KEY=VALUE")]
    words: Vec<String>,
    /// The name is a group's, which has shares=, min=, max=
    #[arg(long)]
    group: bool,
    #[command(flatten)]
    asking: Asking,
}

impl SetArgs {
    /// Changes; the exit status of the process.
    pub fn run(self) -> u8 {
        status(self.set())
    }

    fn set(self) -> Result<(), AskError> {
        let (guest, pairs) = match self.words.split_first() {
            Some((first, rest)) if !first.contains('=') => (Some(first), rest),
            _ => (None, &self.words[..]),
        };
        if self.words.iter().any(String::is_empty) {
            let what = "an empty word is neither a name nor KEY=VALUE; write `levy set web-1 shares=high`";
            return Err(AskError::Usage(what.to_owned()));
        }
        if pairs.is_empty() {
            return Err(AskError::Usage(
                "say what to change, as in shares=high".to_owned(),
            ));
        }
        // What is written wrongly shows before a manager is looked for.
        match guest {
            None if self.group => Err(AskError::Usage("name the group, as in --group web".to_owned())),
            Some(name) if self.group => {
                let change = fold(pairs, GroupChange::default(), group_key)?;
                let group = self.asking.client()?.change_group(name, &change)?;
                warn_of(group.unkept.as_deref());
                self.asking.show(&group, || ls::group(name, &group))
            }
            Some(name) => {
                let change = fold(pairs, GuestChange::default(), guest_key)?;
                let guest = self.asking.client()?.change_guest(name, &change)?;
                warn_of(guest.unkept.as_deref());
                self.asking
                    .show(&guest, || table::of(std::slice::from_ref(&guest)))
            }
            None => {
                let change = fold(pairs, HostChange::default(), host_key)?;
                let host = self.asking.client()?.change_host(&change)?;
                warn_of(host.unkept.as_deref());
                self.asking.show(&host, || ls::host(&host))
            }
        }
    }
}

/// Says of a change that is in force why it would not outlast the manager.
fn warn_of(unkept: Option<&str>) {
    if let Some(reason) = unkept {
        say(format_args!(
            "warning: the change is in force, and lost when this manager ends: {reason}"
        ));
    }
}

/// Reads every pair into `change`.
fn fold<T>(
    pairs: &[String],
    mut change: T,
    read: fn(&mut T, &str, &str) -> Result<(), String>,
) -> Result<T, AskError> {
    for (at, pair) in pairs.iter().enumerate() {
        let usage = |what: &str| AskError::Usage(format!("{pair}: {what}"));
        let (key, value) = pair.split_once('=').ok_or_else(|| usage("write KEY=VALUE"))?;
        if pairs[..at].iter().any(|p| p.split('=').next() == Some(key)) {
            return Err(usage("given twice"));
        }
        read(&mut change, key, value).map_err(|what| usage(&what))?;
    }
    Ok(change)
}

fn guest_key(change: &mut GuestChange, key: &str, value: &str) -> Result<(), String> {
    match key {
        "shares" => change.shares = Some(config::shares(value)?),
        "min" => change.min_bytes = Some(config::size(value)?),
        "max" | "size" => return Err("a guest's size is set when it is started".to_owned()),
        _ => {
            return Err(
                "a guest has the keys shares and min; without a guest: budget, tax, rebalance".to_owned(),
            );
        }
    }
    Ok(())
}

fn group_key(change: &mut GroupChange, key: &str, value: &str) -> Result<(), String> {
    match key {
        "shares" => change.shares = Some(config::shares(value)?),
        "min" => change.min_bytes = Some(config::size(value)?),
        "max" => change.max_bytes = Some(config::size(value)?),
        _ => return Err("a group has the keys shares, min and max".to_owned()),
    }
    Ok(())
}

fn host_key(change: &mut HostChange, key: &str, value: &str) -> Result<(), String> {
    match key {
        "budget" => change.budget_bytes = Some(config::size(value)?),
        "tax" => change.tax_percent = Some(super::host::tax(value)?.part() * 100.0),
        "rebalance" => change.rebalance_seconds = Some(super::host::rebalance(value)?.as_secs_f64()),
        "shares" | "min" => return Err("name the guest first, as in `levy set web-1 shares=high`".to_owned()),
        _ => {
            return Err(
                "the manager has the keys budget, tax and rebalance; a guest: shares, min".to_owned(),
            );
        }
    }
    Ok(())
}
