//! `levy doctor`: what this machine can run, what is missing, and what to do about it.
//!
//! The heart is [`Machine::probe`], which runs tiny guests instead of guessing; `levy run`, the tests and the project's
//! own commands ask it too.

mod finding;
mod host;
mod probe;
mod tools;
mod userfault;

use std::io::{self, Write};

use serde::Serialize;

use crate::out::{self, NotShown};

pub use finding::{Finding, State};
pub use probe::{Machine, NoKvm};

/// What the exit status says, for `--help`.
const STATUS: &str = "\
Exit status: 0 guests run here; 1 they do, but something else is wrong; 2 they only run in the nested host.";

/// `levy doctor`'s options. Its exit status is that of [`Report::status`].
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(after_help = STATUS)]
pub struct Args {
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs `levy doctor` and returns its exit status.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(args: Args) -> Result<u8, NotShown> {
    let report = Report::examine();
    out::show(&report.shown(args.json))?;
    Ok(report.status())
}

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What kind of machine this is: `kernels`, `ring3` or `none`.
    pub machine: &'static str,
    /// Where real guests run: `native`, or `nested` in an emulated host.
    pub guests: &'static str,
    /// One entry per thing that was looked at.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Looks at everything. Takes well under a second.
    pub fn examine() -> Self {
        let machine = Machine::probe();
        let (kind, guests) = match machine {
            Machine::Kernels => ("kernels", "native"),
            Machine::Ring3 { .. } => ("ring3", "nested"),
            Machine::None(_) => ("none", "nested"),
        };
        Self {
            machine: kind,
            guests,
            findings: vec![
                kvm(&machine),
                host::kernel(),
                host::userfaultfd(),
                host::max_map_count(),
                host::overcommit(),
                host::memory(),
                host::tun(),
                host::ksm(),
                tools::qemu(),
                tools::images(),
            ],
        }
    }

    /// 0: guests run here. 1: they run here, but something else is wrong. 2: they only run in the nested host.
    pub fn status(&self) -> u8 {
        let problem = self
            .findings
            .iter()
            .any(|finding| finding.state == State::Problem);
        match (self.guests, problem) {
            ("native", false) => 0,
            ("native", true) => 1,
            _ => 2,
        }
    }

    /// The report for people, or as JSON.
    fn shown(&self, json: bool) -> String {
        if json {
            return out::pretty_json(self);
        }
        let mut text = Vec::new();
        // Memory takes it all.
        let _ = self.write(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Writes the report for people.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        for finding in &self.findings {
            let mark = match finding.state {
                State::Good => "good   ",
                State::Advice => "advice ",
                State::Problem => "PROBLEM",
            };
            writeln!(to, "{mark}  {:<22} {}", finding.name, finding.found)?;
            if let Some(next) = &finding.next {
                writeln!(to, "         {:<22} -> {next}", "")?;
            }
        }
        let place = match self.guests {
            "native" => "real guests run on this machine as it is",
            _ => {
                "real guests run in the nested host: `cargo xtask nested -- COMMAND`; tests and benches do so by themselves"
            }
        };
        writeln!(to, "\n{place}")
    }
}

fn kvm(machine: &Machine) -> Finding {
    const NAME: &str = "kvm";
    let modules = host::kvm_modules().join(", ");
    let via = if modules.is_empty() {
        String::new()
    } else {
        format!(" ({modules})")
    };
    match machine {
        Machine::Kernels => Finding::good(NAME, format!("stock kernels run here{via}")),
        Machine::Ring3 { stopped } => Finding::problem(
            NAME,
            format!("software KVM{via}: ring-3 test guests run, stock kernels do not; stopped at {stopped}"),
            "use the nested host (`cargo xtask nested -- COMMAND`) or a machine with hardware virtualization",
        ),
        Machine::None(_) => Finding::problem(NAME, "no guest runs here", machine.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(guests: &'static str, findings: Vec<Finding>) -> Report {
        Report {
            machine: "kernels",
            guests,
            findings,
        }
    }

    #[test]
    fn the_status_tells_native_from_nested_from_trouble() {
        assert_eq!(report("native", vec![Finding::advice("a", "b", "c")]).status(), 0);
        assert_eq!(
            report("native", vec![Finding::problem("a", "b", "c")]).status(),
            1
        );
        assert_eq!(report("nested", vec![]).status(), 2);
    }

    #[test]
    fn everything_that_is_not_good_says_what_to_do_next() {
        for finding in Report::examine().findings {
            assert_eq!(
                finding.next.is_none(),
                finding.state == State::Good,
                "{finding:?}"
            );
        }
    }

    #[test]
    fn people_read_the_finding_and_its_cure() {
        let mut text = Vec::new();
        report("native", vec![Finding::advice("tun", "closed", "open it")])
            .write(&mut text)
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("advice   tun") && text.contains("-> open it"),
            "{text}"
        );
    }
}
