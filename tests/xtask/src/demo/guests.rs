//! What `levy run --json` tells of its guests, as it comes.

use serde_json::Value;

/// Seconds of a workload between two lines of progress.
const EVERY: f64 = 2.0;

/// The guests of a demo.
pub(crate) struct Guests {
    /// Where they run, for people.
    pub(crate) place: String,
    /// The launcher's last word: one object per guest.
    summary: Option<Value>,
    /// Guests with a verdict.
    verdicts: Vec<String>,
    /// The next progress to show, by guest.
    next: Vec<(String, f64)>,
}

impl Guests {
    pub(crate) fn new(place: String) -> Self {
        Self {
            place,
            summary: None,
            verdicts: Vec::new(),
            next: Vec::new(),
        }
    }

    /// Takes a line; tells people on stderr what is new.
    pub(crate) fn heard(&mut self, line: &str) {
        let Ok(value) = serde_json::from_str::<Value>(line) else {
            eprintln!("{line}");
            return;
        };
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let guest = text("guest");
        match text("event").as_str() {
            "state" => {
                let ms = value["ms"].as_f64().unwrap_or_default();
                eprintln!("demo: {guest}: {} after {:.1} s", text("state"), ms / 1e3);
            }
            "agent" => self.agent(&guest, &value["line"]),
            "ended" | "failed" => eprintln!("demo: {guest}: {}", text("message")),
            "summary" => self.summary = Some(value),
            _ => {}
        }
    }

    /// Whether all of `count` guests have said how their workload went.
    pub(crate) fn all_have_verdicts(&self, count: usize) -> bool {
        self.verdicts.len() >= count
    }

    /// The launcher's account of each guest; empty before the end.
    pub(crate) fn summaries(&self) -> &[Value] {
        let guests = self
            .summary
            .as_ref()
            .and_then(|summary| summary["guests"].as_array());
        guests.map_or(&[], Vec::as_slice)
    }

    fn agent(&mut self, guest: &str, line: &Value) {
        let text = |key: &str| line[key].as_str().unwrap_or_default();
        match text("event") {
            "started" => eprintln!("demo: {guest}: {} started", text("run")),
            "progress" => {
                let seconds = line["seconds"].as_f64().unwrap_or_default();
                if self.due(guest, seconds) {
                    let rate = line["rate"].as_f64().unwrap_or_default();
                    eprintln!("demo: {guest}: {} {seconds:.0} s, {rate:.0}/s", text("run"));
                }
            }
            "verdict" => {
                let word = if line["ok"] == true { "ok" } else { "FAILED" };
                let rate = line["rate"].as_f64().unwrap_or_default();
                eprintln!(
                    "demo: {guest}: {} {word}: {rate:.0} {}/s",
                    text("run"),
                    text("unit")
                );
                self.verdicts.push(guest.to_owned());
            }
            "error" => eprintln!("demo: {guest}: {}", text("message")),
            _ => {}
        }
    }

    fn due(&mut self, guest: &str, seconds: f64) -> bool {
        match self.next.iter_mut().find(|(name, _)| name == guest) {
            Some((_, next)) if seconds < *next => false,
            Some((_, next)) => {
                *next = seconds + EVERY;
                true
            }
            None => {
                self.next.push((guest.to_owned(), seconds + EVERY));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_counted_and_the_summary_kept() {
        let mut guests = Guests::new("here".into());
        guests.heard(r#"{"event":"agent","guest":"guest-1","line":{"t":1,"id":1,"event":"verdict","run":"redis","ok":true,"rate":5.0,"unit":"requests"}}"#);
        assert!(guests.all_have_verdicts(1) && !guests.all_have_verdicts(2));
        assert!(guests.summaries().is_empty());
        guests.heard(r#"{"event":"summary","status":0,"guests":[{"name":"guest-1"}]}"#);
        assert_eq!(guests.summaries().len(), 1);
        guests.heard("not JSON");
    }

    #[test]
    fn progress_is_thinned() {
        let mut guests = Guests::new(String::new());
        let shown: Vec<_> = (0..6).map(|second| guests.due("a", f64::from(second))).collect();
        assert_eq!(shown, [true, false, true, false, true, false]);
    }
}
