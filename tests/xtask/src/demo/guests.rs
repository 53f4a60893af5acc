//! What `levy run --json` tells of its guests, as it comes.

use guest_images::agent_protocol::Report;
use levy_launcher::{GuestSummary, LaunchEvent};
use levy_protocol::GuestEvent;

/// Seconds of a workload between two lines of progress.
const EVERY: f64 = 2.0;

/// The guests of a demo.
pub(crate) struct Guests {
    /// Where they run, for people.
    pub(crate) place: String,
    /// The launcher's account of each guest; empty before the end.
    pub(crate) summaries: Vec<GuestSummary>,
    /// Guests with a verdict.
    verdicts: usize,
    /// The next progress to show, by guest.
    next: Vec<(String, f64)>,
}

impl Guests {
    pub(crate) fn new(place: String) -> Self {
        Self {
            place,
            summaries: Vec::new(),
            verdicts: 0,
            next: Vec::new(),
        }
    }

    /// Takes a line; tells people on stderr what is new.
    pub(crate) fn heard(&mut self, line: &str) {
        let Some(event) = LaunchEvent::parse(line) else {
            eprintln!("{line}");
            return;
        };
        match event {
            LaunchEvent::Guest(event) => vmm_said(&event),
            LaunchEvent::Agent { guest, line } => self.agent_said(&guest, &line.report),
            LaunchEvent::Summary(summary) => self.summaries = summary.guests,
            LaunchEvent::Restart { .. } => {}
        }
    }

    /// Whether all of `count` guests have said how their workload went.
    pub(crate) fn all_have_verdicts(&self, count: usize) -> bool {
        self.verdicts >= count
    }

    fn agent_said(&mut self, guest: &str, report: &Report) {
        match report {
            Report::Started { run } => eprintln!("demo: {guest}: {run} started"),
            Report::Progress {
                run, seconds, rate, ..
            } if self.due(guest, *seconds) => {
                eprintln!("demo: {guest}: {run} {seconds:.0} s, {rate:.0}/s");
            }
            Report::Verdict(verdict) => {
                let word = if verdict.ok { "ok" } else { "FAILED" };
                let (run, rate, unit) = (&verdict.run, verdict.rate, &verdict.unit);
                eprintln!("demo: {guest}: {run} {word}: {rate:.0} {unit}/s");
                self.verdicts += 1;
            }
            Report::Error { message } => eprintln!("demo: {guest}: {message}"),
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

fn vmm_said(event: &GuestEvent) {
    match event {
        GuestEvent::State { guest, state, ms } => {
            eprintln!("demo: {guest}: {state} after {:.1} s", *ms as f64 / 1e3);
        }
        GuestEvent::Ended { guest, message, .. } | GuestEvent::Failed { guest, message, .. } => {
            eprintln!("demo: {guest}: {message}");
        }
        GuestEvent::Unknown(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_counted_and_the_summary_kept() {
        let mut guests = Guests::new("here".into());
        guests.heard(r#"{"event":"agent","guest":"guest-1","line":{"t":1,"id":1,"event":"verdict","run":"redis","ok":true,"ops":50,"unit":"requests","seconds":10.0,"rate":5.0,"detail":""}}"#);
        assert!(guests.all_have_verdicts(1) && !guests.all_have_verdicts(2));
        assert!(guests.summaries.is_empty());
        guests.heard(r#"{"event":"summary","status":0,"guests":[{"name":"guest-1"}]}"#);
        assert_eq!(guests.summaries.len(), 1);
        guests.heard("not JSON");
    }

    #[test]
    fn progress_is_thinned() {
        let mut guests = Guests::new(String::new());
        let shown: Vec<_> = (0..6).map(|second| guests.due("a", f64::from(second))).collect();
        assert_eq!(shown, [true, false, true, false, true, false]);
    }
}
