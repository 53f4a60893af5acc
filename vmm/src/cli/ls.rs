//! `levy ls` and `levy stats`: how guests and their manager fare.

use std::fmt::Write;

use clap::builder::NonEmptyStringValueParser;
use serde_json::json;

use super::asking::{AskError, Asking, status};
use super::table::{self, mib};
use levy_protocol::api::{AboveLimitView, GroupView, GuestView, HostView, WaitingView};
use levy_protocol::printable;

/// List the guests of a manager.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = table::LEGEND)]
pub struct LsArgs {
    #[command(flatten)]
    asking: Asking,
}

/// Show a manager's memory, or one guest's: what it has, what it should have, and why.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = table::LEGEND)]
pub struct StatsArgs {
    /// The guest; without one, the host with its sharing domains and all guests
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    guest: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

impl LsArgs {
    /// Lists; the exit status of the process.
    pub fn run(self) -> u8 {
        status(self.list())
    }

    fn list(self) -> Result<(), AskError> {
        let client = self.asking.client()?;
        let (host, guests) = (client.host()?, client.guests()?);
        self.asking
            .show(&json!({"guests": guests}), || match guests.len() {
                0 => "no guests; start some with `levy run`\n".to_owned(),
                _ => table::of(&guests) + &troubled(&host.waiting_for_memory, &host.above_limits),
            })
    }
}

impl StatsArgs {
    /// Shows; the exit status of the process.
    pub fn run(self) -> u8 {
        status(self.stats())
    }

    fn stats(self) -> Result<(), AskError> {
        let client = self.asking.client()?;
        match &self.guest {
            Some(name) => {
                let guest = client.guest(name)?;
                self.asking.show(&guest, || one(&guest))
            }
            None => {
                let (host, guests) = (client.host()?, client.guests()?);
                self.asking
                    .show(&json!({"host": host, "guests": guests}), || all(&host, &guests))
            }
        }
    }
}

fn all(host: &HostView, guests: &[GuestView]) -> String {
    let mut text = self::host(host);
    text.push('\n');
    text.push_str(&table::of(guests));
    text
}

/// The manager's part.
pub(super) fn host(host: &HostView) -> String {
    let mut text = String::new();
    let settings = &host.settings;
    let free = host.free_bytes.map_or("-".to_owned(), |free| {
        let sign = if free < 0 { "-" } else { "" };
        format!("{sign}{}", mib(free.unsigned_abs()))
    });
    let _ = writeln!(
        text,
        "budget {} MiB, free {free} MiB, state {}, tax {} %, a plan every {} s",
        mib(settings.budget_bytes),
        host.state.as_deref().unwrap_or("-"),
        settings.tax_percent,
        settings.rebalance_seconds,
    );
    let _ = writeln!(
        text,
        "spent: guests {} MiB, pools {} MiB, manager {} MiB; kept for copy-on-write {} MiB",
        mib(host.spent.guests_bytes),
        mib(host.spent.pools_bytes),
        mib(host.spent.manager_bytes),
        mib(host.reserve_bytes),
    );
    let _ = writeln!(
        text,
        "{} guests, {} MiB promised, {} MiB guaranteed",
        host.guests,
        mib(host.promised_bytes),
        mib(host.minimums_bytes),
    );
    for (name, domain) in &host.domains {
        let _ = writeln!(
            text,
            "domain {name}: {} guests, pool {} MiB for {} MiB of guest memory, {} published, {} refused",
            domain.guests,
            mib(u64::from(domain.pool_pages) * 4096),
            mib(domain.references * 4096),
            domain.published,
            domain.refused,
        );
    }
    for (name, group) in &host.groups {
        text.push_str(&self::group(name, group));
    }
    let doors = &host.doors;
    let _ = writeln!(
        text,
        "reports: {} taken in, 99 of 100 within {:.1} ms; {} guests refused, {} connections cut off",
        doors.reports,
        doors.handling_p99_us as f64 / 1000.0,
        doors.refused,
        doors.cut_offs + doors.crowded,
    );
    if doors.starved > 0 {
        let _ = writeln!(
            text,
            "{} connections were not served: the system refused a descriptor, a thread or memory (see the manager's log)",
            doors.starved
        );
    }
    if let Some(reason) = &host.unkept {
        let _ = writeln!(text, "not kept for the next manager: {reason}");
    }
    text + &troubled(&host.waiting_for_memory, &host.above_limits)
}

/// The guests that wait for memory or hold too much, on a line each.
fn troubled(waiting: &[WaitingView], above: &[AboveLimitView]) -> String {
    let mut text = String::new();
    for guest in waiting {
        let _ = writeln!(
            text,
            "{} has waited for memory for {:.0} s and gets none: {}",
            guest.guest, guest.waited_seconds, guest.reason
        );
    }
    for guest in above {
        let _ = writeln!(
            text,
            "{} holds {} MiB, {} MiB more than its limit, and comes no closer to it: {}",
            guest.guest,
            mib(guest.held_bytes),
            mib(guest.held_bytes.saturating_sub(guest.limit_bytes)),
            guest.reason
        );
    }
    text
}

/// One group, on a line.
pub(super) fn group(name: &str, group: &GroupView) -> String {
    let most = group
        .max_bytes
        .map_or("none".to_owned(), |max| format!("{} MiB", mib(max)));
    format!(
        "group {name}: {} shares, min {} MiB, max {most}, holds {} MiB: {}\n",
        group.shares,
        mib(group.min_bytes),
        mib(group.held_bytes),
        group.guests.join(", "),
    )
}

fn one(guest: &GuestView) -> String {
    let mut text = table::of(std::slice::from_ref(guest));
    let (limits, activity, counters) = (&guest.limits, &guest.activity, &guest.counters);
    let _ = writeln!(
        text,
        "\nlimits: min {} MiB, max {} MiB, {} shares",
        mib(limits.min_bytes),
        mib(limits.max_bytes),
        limits.shares
    );
    if let Some(target) = &guest.target {
        let _ = writeln!(text, "why: {}", target.explanation);
    }
    let _ = writeln!(
        text,
        "in use: {:.0} % ({:.0} to {:.0} %) of its private memory; {} MiB/s written",
        activity.fraction * 100.0,
        activity.low * 100.0,
        activity.high * 100.0,
        mib(activity.written_bytes_per_second),
    );
    if let Some(balloon) = &guest.balloon
        && !balloon.responsive
    {
        text.push_str("balloon: its driver is not there; memory is compressed and swapped instead\n");
    }
    if let Some(limit) = guest.limit_bytes {
        let _ = writeln!(
            text,
            "its process holds {} MiB and may hold {} MiB",
            mib(guest.held_bytes),
            mib(limit)
        );
    }
    if let Some(credit) = guest.growth_credit_pages {
        let _ = writeln!(
            text,
            "growth is gated: the host is short, {credit} more pages may grow"
        );
    }
    let _ = writeln!(
        text,
        "since its start: {} copy-on-write breaks, {} pages brought back, {:.2} s of CPU for its memory",
        counters.cow_breaks,
        counters.pages_in,
        counters.engine_cpu_us as f64 / 1e6,
    );
    let _ = writeln!(
        text,
        "process {}, protocol version {}, group {}, sharing domain {}, last report {:.0} s ago",
        guest.pid,
        guest.protocol,
        guest.group.as_deref().unwrap_or("none"),
        guest.domain.as_deref().unwrap_or("none"),
        guest.report_age_seconds
    );
    if let Some(control) = &guest.control {
        let _ = writeln!(text, "control socket {}", printable(control));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_that_wait_for_memory_or_hold_too_much_are_named_with_the_reason() {
        let waiting = WaitingView {
            guest: "web".into(),
            held_bytes: 30 << 20,
            limit_bytes: 30 << 20,
            waited_seconds: 7.2,
            reason: "swap full".into(),
        };
        let above = AboveLimitView {
            guest: "db".into(),
            held_bytes: 40 << 20,
            limit_bytes: 28 << 20,
            reason: "gives up no more".into(),
        };
        assert_eq!(
            troubled(&[waiting], &[above]),
            "web has waited for memory for 7 s and gets none: swap full\n\
             db holds 40.0 MiB, 12.0 MiB more than its limit, and comes no closer to it: gives up no more\n"
        );
        assert_eq!(troubled(&[], &[]), "");
    }
}
