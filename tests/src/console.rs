//! What a guest's console says about its health.

/// Whether trouble on the console fails the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Fails,
    Wanted,
}

/// Words that a healthy guest never says.
const TROUBLE: &[&str] = &[
    "BUG:",
    "Kernel panic",
    "Oops:",
    "Out of memory:",
    "WARNING: CPU:",
    "blocked for more than",
    "detected stall",
    "double fault",
    "general protection fault",
    "soft lockup",
    "self-detected stall",
    "I/O error",
];

/// The first line with trouble in it.
pub(crate) fn trouble(console: &str) -> Option<&str> {
    console
        .lines()
        .find(|line| TROUBLE.iter().any(|words| line.contains(words)))
}

/// The last `count` lines that say something.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_found_and_health_is_not_taken_for_it() {
        let console = "Linux version 6.12\n[ 3.1] rcu: INFO: rcu_preempt self-detected stall on CPU\n";
        assert!(trouble(console).unwrap().contains("rcu"));
        assert_eq!(trouble("all is well\nreboot: Power down\n"), None);
    }

    #[test]
    fn the_tail_leaves_out_blank_lines() {
        assert_eq!(tail("a\n\nb\n \nc\n", 2), "b\nc");
        assert_eq!(tail("", 2), "");
    }
}
