//! What the guests cost and did, for people and for programs.

use std::fmt::Write;

use bench::Report;
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
    for guest in guests.summaries() {
        let seconds = |key: &str| match guest[key].as_f64() {
            Some(ms) => format!("{:.2}", ms / 1e3),
            None => "-".into(),
        };
        let _ = write!(
            text,
            "{:<10} {:>7} {:>7} {:>24}",
            guest["name"].as_str().unwrap_or_default(),
            seconds("booted_ms"),
            seconds("ready_ms"),
            throughput(&guest["verdict"])
        );
        for (_, key) in MEMORY {
            let mib = guest["stats"]["memory"][key].as_f64().map(|kib| kib / 1024.0);
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

fn throughput(verdict: &Value) -> String {
    match (verdict["rate"].as_f64(), verdict["unit"].as_str()) {
        (Some(rate), Some(unit)) if verdict["ok"] == true => format!("{rate:.0} {unit}/s"),
        (Some(_), _) => "FAILED".into(),
        _ => "no verdict".into(),
    }
}

/// The same for programs.
pub(crate) fn report(guests: &Guests) -> Report {
    let mut report = Report::new("demo");
    report.set("place", &guests.place);
    let rows: Vec<Value> = guests.summaries().iter().map(row).collect();
    report.set("guests", rows);
    report
}

fn row(guest: &Value) -> Value {
    let verdict = &guest["verdict"];
    let mut row = json!({
        "name": guest["name"],
        "workload": verdict["run"],
        "ok": verdict["ok"],
        "boot_ms": guest["booted_ms"],
        "ready_ms": guest["ready_ms"],
        "rate": verdict["rate"],
        "unit": verdict["unit"],
        "ops": verdict["ops"],
        "message": guest["message"],
    });
    for (_, key) in MEMORY {
        row[key] = guest["stats"]["memory"][key].clone();
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_figures_is_shown_as_such() {
        let mut guests = Guests::new("here".into());
        guests.heard(
            r#"{"event":"summary","guests":[
            {"name":"a","booted_ms":1500,"verdict":{"ok":true,"rate":12.4,"unit":"requests"},
             "stats":{"memory":{"guest_kib":524288}}},
            {"name":"b"}]}"#
                .replace('\n', "")
                .as_str(),
        );
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
