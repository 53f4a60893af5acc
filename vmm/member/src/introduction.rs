//! How a guest is introduced to its manager.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use levy_protocol::link::{FromManager, FromVmm, Hello, Line, LineError, Lines, OLDEST};
use levy_protocol::run_dir::{self, Sockets};
use levy_protocol::socket::check_path;

use super::swap_folder::SwapFolder;

/// How long the manager may take to admit a guest.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often the link is looked after: an order waits no longer.
const TICK: Duration = Duration::from_millis(100);

/// Why a guest has no manager.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No manager is there.
    #[error("no manager answers at {path}; start one with `levy host`, or leave --manager out", path = path.display())]
    Absent {
        /// Where it should be.
        path: std::path::PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It may be another user's, who would be told what is in the guest's pages.
    #[error(
        "the manager's run directory {dir} is not to be trusted; remove it, or name another manager",
        dir = dir.display()
    )]
    Untrusted {
        /// The run directory.
        dir: std::path::PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It does not want this guest.
    #[error("the manager refuses this guest: {0}")]
    Refused(String),
    /// It answered nonsense, or nothing in time.
    #[error("the manager does not speak this protocol")]
    Talk(#[from] LineError),
    /// It fell silent.
    #[error("the manager did not answer within {} seconds", PATIENCE.as_secs())]
    Silent,
    /// The guest's memory has other frame numbers than guests of its size have: see
    /// [`ram_ranges`](levy_protocol::frame_space::ram_ranges).
    #[error(
        "frame numbers of the guest's memory end at {frames} and not at {needed}, as those of a guest of {size} bytes \
         must: its first 3 GiB begin at frame 0, what is beyond them at frame 1048576, which is 4 GiB"
    )]
    Frames {
        /// The guest's size, bytes.
        size: u64,
        /// One more than its memory's highest frame number.
        frames: u32,
        /// What that must be; 0 where a guest cannot be so large.
        needed: u32,
    },
    /// The page socket does not take the guest.
    #[error("the manager admits the guest but does not serve its pages")]
    Join(#[source] io::Error),
    /// The system refuses a thread or a descriptor.
    #[error("cannot start to attend to this guest's memory")]
    System(#[source] io::Error),
}

/// A guest that was admitted.
#[derive(Debug)]
pub struct Introduction {
    pub(super) sockets: Sockets,
    pub(super) hello: Hello,
    pub(super) link: Link,
}

/// A connection on which a guest was admitted.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: UnixStream,
    pub(super) lines: Lines,
    /// The version that both sides speak.
    pub(super) version: u32,
}

impl Introduction {
    /// Asks the manager whose run directory is `dir` to admit the guest that `hello` describes.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn make(dir: &Path, hello: Hello) -> Result<Self, ConnectError> {
        // Looked at once: it stays its owner's, and a confined process could not look again.
        if let Err(source) = run_dir::trust(dir)
            && source.kind() == io::ErrorKind::PermissionDenied
        {
            let dir = dir.to_owned();
            return Err(ConnectError::Untrusted { dir, source });
        }
        let sockets = Sockets::in_dir(dir);
        let link = introduce(&sockets, &hello)?;
        Ok(Self { sockets, hello, link })
    }

    /// The same for a guest whose pages will be swapped to the folder `swap`: the manager hears what fits there, and
    /// admits the guest only where that is enough. Where the folder does not say, the manager hears nothing of it.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn make_swapping(dir: &Path, hello: Hello, swap: &Path) -> Result<Self, ConnectError> {
        let folder = SwapFolder::open(swap);
        let swap = folder.as_ref().ok().and_then(|folder| folder.room(0, 0).ok());
        Self::make(dir, Hello { swap, ..hello })
    }
}

/// Introduces the guest in the newest version that both sides speak.
pub(super) fn introduce(sockets: &Sockets, hello: &Hello) -> Result<Link, ConnectError> {
    match introduce_as(sockets, hello) {
        Err(ConnectError::Refused(reason)) if is_before_negotiation(hello, &reason) => {
            introduce_as(sockets, &hello.in_version(OLDEST))
        }
        other => other,
    }
}

/// Whether a manager that gives this `reason` does not know of negotiation: it names the field that is new to it.
fn is_before_negotiation(hello: &Hello, reason: &str) -> bool {
    hello.oldest == Some(OLDEST) && reason.contains("`oldest`")
}

fn introduce_as(sockets: &Sockets, hello: &Hello) -> Result<Link, ConnectError> {
    let absent = |source| ConnectError::Absent {
        path: sockets.guests.clone(),
        source,
    };
    check_path(&sockets.guests).map_err(absent)?;
    let stream = UnixStream::connect(&sockets.guests).map_err(absent)?;
    stream.set_read_timeout(Some(TICK)).map_err(absent)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(absent)?;
    Lines::send(&mut &stream, &FromVmm::Hello(hello.clone())).map_err(absent)?;
    let mut link = Link {
        stream,
        lines: Lines::default(),
        version: hello.version,
    };
    let until = Instant::now() + PATIENCE;
    loop {
        match link.lines.next::<FromManager>(&mut &link.stream)? {
            Line::Message(FromManager::Welcome(welcome)) => {
                link.version = welcome.version;
                return Ok(link);
            }
            Line::Message(FromManager::Refused { reason }) => return Err(ConnectError::Refused(reason)),
            Line::End => return Err(ConnectError::Silent),
            Line::Message(_) | Line::Unknown | Line::Later if Instant::now() < until => {}
            Line::Message(_) | Line::Unknown | Line::Later => return Err(ConnectError::Silent),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    use super::*;
    use levy_protocol::link::{PageCounts, VERSION};

    fn hello() -> Hello {
        Hello {
            pages: Some(PageCounts::default()),
            ..Hello::new("g1", 1 << 30).with_min(1 << 28)
        }
    }

    /// Answers each line of `answers` to one introduction, and returns what was said to it.
    fn answered(answers: &'static [&'static str]) -> (Result<(), String>, Vec<serde_json::Value>) {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::in_dir(dir.path());
        let listener = UnixListener::bind(&sockets.guests).unwrap();
        let manager = std::thread::spawn(move || {
            let answer = |answer: &&str| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                writeln!(stream, "{answer}").unwrap();
                serde_json::from_str(&line).unwrap()
            };
            answers.iter().map(answer).collect()
        });
        let met = introduce(&sockets, &hello()).map(drop).map_err(|e| e.to_string());
        (met, manager.join().unwrap())
    }

    /// The words of the first release.
    const OLD_REFUSAL: &str = "{\"type\":\"refused\",\"reason\":\"the peer sent what is no message: unknown field \
        `oldest`, expected one of `version`, `name`, `size`\"}";
    const OLD_WELCOME: &str = "{\"type\":\"welcome\",\"rebalance_seconds\":15}";

    #[test]
    fn a_manager_from_before_negotiation_hears_its_own_version() {
        let (met, said) = answered(&[OLD_REFUSAL, OLD_WELCOME]);
        assert_eq!(met, Ok(()));
        assert_eq!(said[0]["version"], VERSION);
        assert_eq!(
            (&said[0]["oldest"], &said[1]["version"]),
            (&OLDEST.into(), &OLDEST.into())
        );
        let unknown = said[1]
            .as_object()
            .unwrap()
            .keys()
            .filter(|key| ["oldest", "pages", "swap"].contains(&key.as_str()));
        assert_eq!(unknown.count(), 0, "{}", said[1]);
    }

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_told_with_what_to_do() {
        let sockets = Sockets::in_dir(Path::new(&"run/".repeat(30)));
        let met = introduce(&sockets, &hello()).map(drop).unwrap_err();
        assert!(
            matches!(&met, ConnectError::Absent { source, .. }
            if source.to_string().ends_with("use a shorter directory")),
            "{met:?}"
        );
    }

    #[test]
    fn a_refusal_for_another_reason_is_final() {
        let (met, said) = answered(&["{\"type\":\"refused\",\"reason\":\"no room\"}"]);
        assert!(met.unwrap_err().contains("no room"));
        assert_eq!(said.len(), 1);
        assert!(said[0]["pages"].is_object());
    }
}
