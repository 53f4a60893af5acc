//! The table for people: each result next to what it should be.

/// What a number should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    None,
}

/// Rows of the table, in the order they were measured.
#[derive(Debug, Default)]
pub(crate) struct Verdicts(Vec<(String, f64, Goal)>);

impl Verdicts {
    pub(crate) fn add(&mut self, key: &str, value: f64, goal: Goal) {
        self.0.push((key.to_owned(), value, goal));
    }

    /// Prints the table. A missed goal is said, not punished: the machine is noisy and the reader judges.
    pub(crate) fn print(&self) {
        let width = self.0.iter().map(|(key, ..)| key.len()).max().unwrap_or(0);
        println!("{:width$}  {:>12}  {:>12}", "result", "measured", "goal");
        for (key, value, goal) in &self.0 {
            let (goal, met) = match *goal {
                Goal::AtMost(most) => (format!("<= {most}"), *value <= most),
                Goal::AtLeast(least) => (format!(">= {least}"), *value >= least),
                Goal::None => (String::new(), true),
            };
            let missed = if met { "" } else { "  missed" };
            println!("{key:width$}  {value:>12.4}  {goal:>12}{missed}");
        }
    }
}
