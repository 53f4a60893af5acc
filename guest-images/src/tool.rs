//! Running the system's tools: what failed is told with the end of its stderr.

use std::io;
use std::process::{Command, Stdio};

use crate::{Error, Result};

/// Lines of stderr kept in an error.
const STDERR_LINES: usize = 12;

/// A program and the Debian package that has it.
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

impl Tool {
    /// A command that runs it in the C locale, so that its answers can be read.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        command
    }

    /// Runs `command` and returns its standard output.
    ///
    /// # Errors
    /// The program is missing or ends with a status other than 0; `what` says what it was to do.
    pub(crate) fn run(&self, what: &str, command: &mut Command) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes(what, command)?).into_owned())
    }

    /// As [`Tool::run`], for output that is no text.
    pub(crate) fn bytes(&self, what: &str, command: &mut Command) -> Result<Vec<u8>> {
        let output = command.output().map_err(|source| self.cannot_start(source))?;
        if !output.status.success() {
            return Err(Error::Tool {
                what: what.to_owned(),
                command: shown(command),
                status: output.status.to_string(),
                stderr: tail(&String::from_utf8_lossy(&output.stderr)),
            });
        }
        Ok(output.stdout)
    }

    fn cannot_start(&self, source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::NotFound {
            return Error::MissingTool {
                program: self.program.to_owned(),
                package: self.package,
            };
        }
        Error::File {
            action: "start",
            path: self.program.into(),
            source,
        }
    }
}

/// The command line as a person would type it, shortened.
fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    let line = words.join(" ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(STDERR_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let tool = Tool {
            program: "levy-no-such-program",
            package: "no-such-package",
        };
        let error = tool.run("nothing", &mut tool.command()).unwrap_err();
        assert!(
            error.to_string().contains("apt-get install no-such-package"),
            "{error}"
        );
    }

    #[test]
    fn a_failure_shows_the_end_of_stderr() {
        let tool = Tool {
            program: "sh",
            package: "dash",
        };
        let error = tool
            .run("a test", tool.command().args(["-c", "seq 1 100 >&2; exit 3"]))
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.ends_with("100"), "{text}");
        assert!(!text.contains("\n80\n"), "{text}");
    }
}
