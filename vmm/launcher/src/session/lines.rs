//! Lines from a guest's process or its agent, which the guest may have taken over.

use std::io::{BufRead, Read};
use std::time::Instant;

use levy_agent::MAX_LINE;

use crate::allowance::{Allowance, Rate};

/// Lines that are taken of one source. Each [`WEIGHT`] bytes of a line count as one line more. An agent that does as it
/// should says a line a second, and a process a handful in its life.
const LINES: Rate = Rate {
    burst: 500.0,
    per_second: 50.0,
};
const WEIGHT: f64 = 2048.0;

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// So many lines came too fast to be taken, or were too long.
    Missed(u64),
    /// A line.
    Line(String),
}

/// Passes on to `hear` what `reader` brings, until its end. No line is longer than [`MAX_LINE`], and what comes too fast
/// is dropped and counted: a reader that may say anything costs bounded time and memory a second.
pub(super) fn listen(mut reader: impl BufRead, mut hear: impl FnMut(Taken)) {
    let mut allowance = Allowance::new(LINES, Instant::now());
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(MAX_LINE as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let Some(missed) = allowance.take(1.0 + line.len() as f64 / WEIGHT, Instant::now()) else {
            continue;
        };
        if missed > 0 {
            hear(Taken::Missed(missed));
        }
        if let Ok(line) = String::from_utf8(line) {
            hear(Taken::Line(line));
        }
    }
    match allowance.missed() {
        0 => {}
        missed => hear(Taken::Missed(missed)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    #[test]
    fn a_flood_is_cut_to_what_is_allowed_and_counted() {
        for line in ["{}\n".to_owned(), format!("{}\n", "x".repeat(60_000))] {
            let count = 20_000_000 / line.len();
            let flood = line.repeat(count);
            let (mut taken, mut missed) = (0, 0);
            listen(BufReader::new(flood.as_bytes()), |heard| match heard {
                Taken::Missed(lines) => missed += lines,
                Taken::Line(same) => {
                    assert_eq!(same, line);
                    taken += 1;
                }
            });
            assert_eq!(taken + missed, count as u64);
            assert!(taken > 0 && taken < missed, "{taken} of {count} lines");
        }
    }

    #[test]
    fn an_agent_that_says_little_loses_nothing() {
        let said: String = (0..400).map(|number| format!("{{\"t\":{number}}}\n")).collect();
        let mut heard = Vec::new();
        listen(said.as_bytes(), |line| heard.push(line));
        assert_eq!(heard.len(), 400);
        assert_eq!(heard[399], Taken::Line("{\"t\":399}\n".to_owned()));
    }
}
