//! What the guests cost and did, for people and for programs.

use std::fmt::Write;

use levy_bench::Report;
use levy_launcher::GuestSummary;
use serde_json::{Value, json};

use super::guests::Guests;

/// A column of memory: its heading, and its name in the launcher's figures.
const MEMORY: [(&str, &str); 6] = [
    ("configured", "guest_kib"),
    ("touched", "guest_rss_kib"),
    ("private", "guest_private_kib"),
    ("PSS", "guest_pss_kib"),
    ("VMM private", "vmm_private_kib"),
    ("VMM PSS", "vmm_pss_kib"),
];

/// The table; sizes in MiB.
pub(crate) fn text(guests: &Guests) -> String {
    let mut text = String::new();
    let _ = write!(
        text,
        "{:<10} {:>7} {:>7} {:>24}",
        "guest", "boot s", "ready s", "throughput"
    );
    for (heading, _) in MEMORY {
        let _ = write!(text, " {heading:>11}");
    }
    text.push('\n');
    for guest in &guests.summaries {
        let seconds = |ms: Option<u64>| ms.map_or("-".into(), |ms| format!("{:.2}", ms as f64 / 1e3));
        let _ = write!(
            text,
            "{:<10} {:>7} {:>7} {:>24}",
            guest.name,
            seconds(guest.booted_ms),
            seconds(guest.ready_ms),
            throughput(guest)
        );
        for (_, figure) in MEMORY {
            let mib = guest.memory_kib(figure).map(|kib| kib as f64 / 1024.0);
            let _ = write!(text, " {:>11}", mib.map_or("-".into(), |mib| format!("{mib:.1}")));
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "sizes in MiB at each guest's verdict; guests ran {}",
        guests.place
    );
    let _ = writeln!(
        text,
        "PSS holds a guest's part of all common copies: guests that have ended leave theirs to the rest"
    );
    text
}

fn throughput(guest: &GuestSummary) -> String {
    match guest.verdict() {
        Some(verdict) if verdict.ok => format!("{:.0} {}/s", verdict.rate, verdict.unit),
        Some(_) => "FAILED".into(),
        None => "no verdict".into(),
    }
}

/// The same for programs.
pub(crate) fn report(guests: &Guests) -> Report {
    let mut report = Report::new("demo");
    report.set("place", &guests.place);
    let rows: Vec<Value> = guests.summaries.iter().map(row).collect();
    report.set("guests", rows);
    report
}

fn row(guest: &GuestSummary) -> Value {
    let verdict = guest.verdict();
    let mut row = json!({
        "name": guest.name,
        "workload": verdict.map(|verdict| &verdict.run),
        "ok": verdict.map(|verdict| verdict.ok),
        "boot_ms": guest.booted_ms,
        "ready_ms": guest.ready_ms,
        "rate": verdict.map(|verdict| verdict.rate),
        "unit": verdict.map(|verdict| &verdict.unit),
        "ops": verdict.map(|verdict| verdict.ops),
        "message": guest.message,
    });
    for (_, figure) in MEMORY {
        row[figure] = json!(guest.memory_kib(figure));
    }
    row
}

#[cfg(test)]
mod tests {
    use guest_images::agent_protocol::{Report as Word, Verdict};

    use super::*;

    #[test]
    fn a_guest_without_figures_is_shown_as_such() {
        let mut guests = Guests::new("here".into());
        let verdict = Verdict {
            ok: true,
            rate: 12.4,
            unit: "requests".into(),
            ..Verdict::default()
        };
        let guest = |name: &str| GuestSummary {
            name: name.into(),
            ..GuestSummary::default()
        };
        let full = GuestSummary {
            booted_ms: Some(1500),
            verdict: Some(Word::Verdict(verdict)),
            stats: Some(json!({"memory": {"guest_kib": 524_288}})),
            ..guest("a")
        };
        guests.summaries = vec![full, guest("b")];
        let text = text(&guests);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[1].contains("1.50") && lines[1].contains("12 requests/s") && lines[1].contains("512.0"),
            "{text}"
        );
        assert!(lines[2].contains("no verdict"), "{text}");
        assert_eq!(
            report(&guests).to_json()["results"]["guests"][0]["guest_kib"],
            524_288
        );
    }
}
