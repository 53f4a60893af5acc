//! What can go wrong while building an image, each with the value and the cure.

use std::path::PathBuf;

/// Why an image, kernel or package tree could not be made. Nothing half-built is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    /// Neither LEVY_CACHE nor XDG_CACHE_HOME nor HOME says where the cache is.
    #[error("no place for the image cache: set LEVY_CACHE, XDG_CACHE_HOME or HOME")]
    NoCacheDir,

    /// A file operation failed.
    #[error("cannot {action} {path}{}", hint(source))]
    File {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },

    /// Too little room before a build starts.
    #[error(
        "building {what} needs {needed_mib} MiB free in {path}, which has {free_mib} MiB: free some space or set LEVY_CACHE to another disk"
    )]
    NoSpace {
        what: String,
        path: PathBuf,
        needed_mib: u64,
        free_mib: u64,
    },

    /// A program this machine lacks.
    #[error(
        "{program} is not installed: run `apt-get install {package}` as root (this needs a Debian 12 or 13 machine)"
    )]
    MissingTool { program: String, package: &'static str },

    /// A program failed.
    #[error("{what} failed: {command}: {status}\n{stderr}")]
    Tool {
        what: String,
        command: String,
        status: String,
        stderr: String,
    },

    /// The host's apt configuration names no Debian archive.
    #[error(
        "apt on this machine has no Debian archive configured: set LEVY_MIRROR to the address of one, as in http://HOST/debian"
    )]
    NoMirror,

    /// LEVY_MIRROR is not an address.
    #[error(
        "LEVY_MIRROR={value:?} is not an archive address: it must start with http://, https:// or file:/ and hold no spaces"
    )]
    BadMirror { value: String },

    /// The keys that sign Debian's archive are missing.
    #[error(
        "the Debian archive keys are missing ({path}): run `apt-get install debian-archive-keyring` as root"
    )]
    NoKeyring { path: PathBuf },

    /// A package's bytes are not the ones the signed index promises.
    #[error(
        "{file} has SHA-256 {found}, the signed index says {expected}: the download is damaged or forged; it was removed, try again or choose another mirror by LEVY_MIRROR"
    )]
    Checksum {
        file: String,
        expected: String,
        found: String,
    },

    /// apt's answer is not in the form it has on Debian 12 and 13.
    #[error("cannot understand apt's answer {line:?}: this needs apt of Debian 12 or 13")]
    AptAnswer { line: String },

    /// A package or a file in it is not there.
    #[error("{what} is missing in {place}")]
    Missing { what: String, place: String },
}

impl Error {
    /// For `map_err`: a failed file operation on `path`.
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

/// The cure for the two file errors that have one.
fn hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull => " (free some space or set LEVY_CACHE to another disk)",
        std::io::ErrorKind::PermissionDenied => " (set LEVY_CACHE to a directory of your own)",
        _ => "",
    }
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;
