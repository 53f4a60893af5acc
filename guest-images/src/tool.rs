//! Running the system's tools: what failed is told with the end of its stderr.

use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::cache::Cache;
use crate::privilege::is_root;
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
        command
            .env("LC_ALL", "C.UTF-8")
            .env("PATH", path())
            .stdin(Stdio::null());
        command
    }

    /// True if the program is where [`Tool::command`] would find it.
    fn exists(&self) -> bool {
        env::split_paths(&path()).any(|dir| dir.join(self.program).is_file())
    }

    /// Runs `command` and passes each line of its standard error to `tell` while it runs.
    ///
    /// # Errors
    /// As [`Tool::run`].
    pub(crate) fn follow(&self, what: &str, command: &mut Command, tell: &dyn Fn(&str)) -> Result<()> {
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| self.cannot_start(source))?;
        let mut said = String::new();
        let stderr = child.stderr.take().map(BufReader::new);
        for line in stderr
            .into_iter()
            .flat_map(BufRead::lines)
            .map_while(io::Result::ok)
        {
            tell(&line);
            said.push_str(&line);
            said.push('\n');
        }
        let status = child.wait().map_err(Error::file("wait for", self.program))?;
        if status.success() {
            Ok(())
        } else {
            Err(failed(what, command, &status, &said))
        }
    }

    /// Runs `command` and returns its standard output.
    ///
    /// # Errors
    /// The program is missing or ends with a status other than 0; `what` says what it was to do.
    pub(crate) fn run(&self, what: &str, command: &mut Command) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes(what, command)?).into_owned())
    }

    /// As [`Tool::run`], for output that is not text.
    pub(crate) fn bytes(&self, what: &str, command: &mut Command) -> Result<Vec<u8>> {
        let output = command.output().map_err(|source| self.cannot_start(source))?;
        if !output.status.success() {
            return Err(failed(
                what,
                command,
                &output.status,
                &String::from_utf8_lossy(&output.stderr),
            ));
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

/// Installs the packages of tools that are missing: as root by the system's own apt, otherwise the error says how.
///
/// # Errors
/// A tool is missing and this is not root, or apt cannot install it.
pub(crate) fn ensure(cache: &Cache, tools: &[&Tool]) -> Result<()> {
    const APT_GET: Tool = Tool {
        program: "apt-get",
        package: "apt",
    };
    for tool in tools.iter().filter(|tool| !tool.exists()) {
        if !is_root() {
            return Err(Error::MissingTool {
                program: tool.program.to_owned(),
                package: tool.package,
            });
        }
        cache.say(&format!("installing {} for {}", tool.package, tool.program));
        let what = format!("installing {}", tool.package);
        let install = || {
            let mut apt = APT_GET.command();
            apt.env("DEBIAN_FRONTEND", "noninteractive");
            apt.args([
                "install",
                "-qq",
                "--assume-yes",
                "--no-install-recommends",
                tool.package,
            ]);
            APT_GET.run(&what, &mut apt)
        };
        // A fresh container has no package indexes.
        install().or_else(|_| {
            APT_GET.run(
                "fetching package indexes",
                APT_GET.command().args(["-qq", "update"]),
            )?;
            install()
        })?;
    }
    Ok(())
}

/// Ordinary users have no sbin in their path, but mke2fs lives there.
fn path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

fn failed(what: &str, command: &Command, status: &std::process::ExitStatus, stderr: &str) -> Error {
    Error::Tool {
        what: what.to_owned(),
        command: shown(command),
        status: status.to_string(),
        stderr: tail(stderr),
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
