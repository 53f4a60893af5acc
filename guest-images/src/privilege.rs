//! What needs to give files away: root does it by itself, an ordinary user in a user namespace with subordinate ids.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use crate::tool::Tool;
use crate::{Error, Result};

const SH: Tool = Tool {
    program: "sh",
    package: "dash",
};

/// What [`as_root`] runs for ordinary users.
pub(crate) const UNSHARE: Tool = Tool {
    program: "unshare",
    package: "util-linux",
};

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command, still without program and arguments, that may give files away.
pub(crate) fn as_root() -> Command {
    if is_root() {
        let mut command = SH.command();
        command.args(["-c", "exec \"$@\"", "sh"]);
        return command;
    }
    let mut command = UNSHARE.command();
    command.args(["--map-root-user", "--map-auto", "--"]);
    command
}

/// Removes a directory and all in it, if it is there; files that were given away too.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied && !is_root() => {
            UNSHARE.run(
                "removing what is left of a build",
                as_root().args(["rm", "-rf"]).arg(path),
            )?;
            Ok(())
        }
        other => other.map_err(Error::file("remove", path)),
    }
}
