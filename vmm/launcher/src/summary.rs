//! The end of a launch, for people and for programs.

use std::fmt::Write;

use levy_agent::{Report, Verdict};
use levy_protocol::outcome::Ending;
use levy_protocol::printable;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestSummary {
    /// Its name.
    pub name: String,
    /// What it did last.
    pub state: String,
    /// How it ended, in a word; none if it never started.
    pub outcome: Option<Ending>,
    /// How it ended, in a sentence.
    pub message: String,
    /// Exit status of its VMM.
    pub status: u8,
    /// How often it restarted.
    pub restarts: u32,
    /// Milliseconds from the start of its VMM until its vCPUs ran.
    pub started_ms: Option<u64>,
    /// ... until its agent's first line.
    pub booted_ms: Option<u64>,
    /// ... until its agent took commands.
    pub ready_ms: Option<u64>,
    /// The agent's report of the workload's verdict.
    pub verdict: Option<Report>,
    /// Memory and device figures when the workload was done, or when the guest was ready.
    pub stats: Option<Value>,
    /// The last errors that its agent reported, of long ones the begin.
    pub complaints: Vec<String>,
    /// Lines of its agent or its process that were dropped, because they came too fast or there were too many errors.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropped_lines: u64,
    /// The end of its console, where something went wrong.
    pub console: Vec<String>,
}

/// Errors of one guest that are kept, and bytes of each.
const COMPLAINTS: usize = 16;
const COMPLAINT: usize = 500;
/// Bytes of what a guest has to say that are shown on one line.
const SHOWN: usize = 1000;

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The begin of `text`, which a guest may have written, as it may be shown on a line.
pub(super) fn shown(text: &str) -> String {
    printable(begin(text, SHOWN)).into_owned()
}

fn begin(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

impl GuestSummary {
    /// Keeps an error, and lets the oldest of too many go.
    pub(super) fn complain(&mut self, what: &str) {
        if self.complaints.len() == COMPLAINTS {
            self.complaints.remove(0);
            self.dropped_lines += 1;
        }
        self.complaints.push(begin(what, COMPLAINT).to_owned());
    }

    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: "starting".into(),
            ..Self::default()
        }
    }

    /// What the workload found, if it came to its end.
    pub fn verdict(&self) -> Option<&Verdict> {
        match &self.verdict {
            Some(Report::Verdict(verdict)) => Some(verdict),
            _ => None,
        }
    }

    /// Whether the workload said that all is well.
    pub fn is_ok(&self) -> bool {
        self.verdict().is_some_and(|verdict| verdict.ok)
    }

    /// A figure of its memory in KiB, by the name that it has among its process's figures.
    pub fn memory_kib(&self, name: &str) -> Option<u64> {
        self.stats.as_ref()?["memory"][name].as_u64()
    }
}

/// All guests of a launch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// The guests.
    pub guests: Vec<GuestSummary>,
    /// Exit status of the launcher.
    pub status: u8,
}

/// Exit status when a workload's verdict is bad or missing.
const VERDICT: u8 = 7;
/// Exit status after Ctrl-C.
const INTERRUPTED: u8 = 130;

impl Summary {
    /// The summary of `guests`, whose exit status is the gravest of theirs; `busy` says which of them had a workload.
    pub(super) fn of(guests: Vec<GuestSummary>, busy: &[bool], interrupted: bool) -> Self {
        let gravest = guests.iter().map(|g| g.status).find(|&s| s != 0);
        let unwell = guests
            .iter()
            .zip(busy)
            .any(|(guest, &busy)| busy && !guest.is_ok());
        let status = match (interrupted, gravest) {
            (true, _) => INTERRUPTED,
            (false, Some(status)) => status,
            (false, None) if unwell => VERDICT,
            (false, None) => 0,
        };
        Self { guests, status }
    }

    /// A table, and what there is to say about guests that did not end well.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{:<12} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9}  {}\n",
            "guest", "boot s", "ready s", "MEM MiB", "RSS MiB", "PRIV MiB", "VMM MiB", "result"
        );
        for guest in &self.guests {
            let seconds = |ms: Option<u64>| ms.map_or("-".into(), |ms| format!("{:.2}", ms as f64 / 1000.0));
            let mib = |name: &str| {
                let kib = guest.memory_kib(name);
                kib.map_or("-".into(), |kib| format!("{:.1}", kib as f64 / 1024.0))
            };
            let _ = writeln!(
                text,
                "{:<12} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9}  {}",
                guest.name,
                seconds(guest.booted_ms),
                seconds(guest.ready_ms),
                mib("guest_kib"),
                mib("guest_rss_kib"),
                mib("guest_private_kib"),
                mib("vmm_private_kib"),
                shown(&guest.result()),
            );
        }
        for guest in self.guests.iter().filter(|g| !g.console.is_empty()) {
            let _ = writeln!(text, "\nend of the console of {}:", guest.name);
            for line in &guest.console {
                let _ = writeln!(text, "  {}", shown(line));
            }
        }
        for guest in self.guests.iter().filter(|g| g.dropped_lines > 0) {
            let GuestSummary {
                name, dropped_lines, ..
            } = guest;
            let _ = writeln!(
                text,
                "{name}: {dropped_lines} lines of its agent or its VMM were dropped"
            );
        }
        text
    }
}

impl GuestSummary {
    fn result(&self) -> String {
        let ended = if self.status == 0 {
            String::new()
        } else {
            format!("; {}", self.message)
        };
        let Some(verdict) = self.verdict() else {
            let complaint = self
                .complaints
                .last()
                .map(|c| format!(" ({c})"))
                .unwrap_or_default();
            return format!("{}{complaint}", self.message);
        };
        let word = if verdict.ok { "ok" } else { "FAILED" };
        let Verdict { run, rate, unit, .. } = verdict;
        let detail = match verdict.detail.as_str() {
            "" => String::new(),
            detail => format!(" ({detail})"),
        };
        format!("{run} {word}, {rate:.0} {unit}/s{detail}{ended}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(status: u8, ok: Option<bool>) -> GuestSummary {
        let verdict = |ok| Verdict {
            ok,
            run: "churn".into(),
            unit: "pages".into(),
            rate: 3.0,
            ..Verdict::default()
        };
        GuestSummary {
            status,
            verdict: ok.map(|ok| Report::Verdict(verdict(ok))),
            ..GuestSummary::new("g")
        }
    }

    #[test]
    fn the_gravest_end_decides_the_status() {
        let status = |guests: &[GuestSummary], verdicts, interrupted| {
            Summary::of(guests.to_vec(), &vec![verdicts; guests.len()], interrupted).status
        };
        assert_eq!(status(&[guest(0, None), guest(0, None)], false, false), 0);
        assert_eq!(status(&[guest(0, Some(true))], true, false), 0);
        assert_eq!(
            status(&[guest(0, Some(true)), guest(0, Some(false))], true, false),
            7
        );
        assert_eq!(status(&[guest(0, Some(true)), guest(0, None)], true, false), 7);
        assert_eq!(status(&[guest(0, Some(true)), guest(5, None)], true, false), 5);
        assert_eq!(status(&[guest(0, Some(true))], true, true), 130);
        // A guest that has nothing to run owes no verdict.
        let mixed = vec![guest(0, Some(true)), guest(0, None)];
        assert_eq!(Summary::of(mixed, &[true, false], false).status, 0);
    }

    #[test]
    fn what_a_guest_says_begins_no_line_and_moves_no_cursor() {
        let mut said = guest(0, Some(false));
        said.console.push("\u{1b}[2Joops\r".to_owned());
        if let Some(Report::Verdict(verdict)) = &mut said.verdict {
            verdict.detail = "a\n\u{1b}[31mb".to_owned();
        }
        let text = Summary::of(vec![said], &[true], false).to_text();
        assert!(!text.replace('\n', "").contains(char::is_control), "{text:?}");
        assert!(
            text.contains("(a\\n\\u{1b}[31mb)") && text.contains("oops"),
            "{text:?}"
        );
    }

    #[test]
    fn what_a_guest_says_is_shown_in_part_and_steers_no_terminal() {
        let hostile = format!("\x1b[2J\r\nfake: {}", "\u{9b}1m".repeat(100_000));
        let mut unwell = guest(0, Some(false));
        if let Some(Report::Verdict(verdict)) = &mut unwell.verdict {
            (verdict.detail, verdict.run, verdict.unit) = (hostile.clone(), hostile.clone(), hostile.clone());
        }
        let mut ended = guest(4, None);
        (ended.message, ended.console) = (hostile.clone(), vec![hostile.clone()]);
        let mut complaining = guest(0, None);
        (0..100).for_each(|_| complaining.complain(&hostile));
        assert!(complaining.complaints.iter().map(String::len).sum::<usize>() <= COMPLAINTS * COMPLAINT);
        assert_eq!(complaining.dropped_lines, 84);
        let guests = vec![unwell, ended, complaining];
        let text = Summary::of(guests, &[true, false, false], false).to_text();
        assert!(text.lines().all(|line| printable(line) == line), "{text}");
        assert!(!text.contains("\nfake") && text.contains("84 lines") && text.len() < 40_000);
    }

    #[test]
    fn the_table_names_every_guest_and_its_verdict() {
        let text = Summary::of(
            vec![guest(0, Some(true)), guest(0, Some(false))],
            &[true, true],
            false,
        )
        .to_text();
        assert!(text.contains("churn ok, 3 pages/s"), "{text}");
        assert!(text.contains("churn FAILED"), "{text}");
    }
}
