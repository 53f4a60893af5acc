//! The other end: asks a manager, and finds one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use levy_protocol::api::{
    Failure, GroupChange, GroupView, GuestChange, GuestList, GuestView, HostChange, HostView, StopOrder,
};
use levy_protocol::run_dir;
use levy_protocol::run_dir::RunDir;
use levy_protocol::socket::check_path;

/// How long an answer may take, unless the asker is less patient.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes in the longest answer: a thousand guests take 2 MiB.
const ANSWER_LIMIT: usize = 32 << 20;

/// Why a manager did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum ClientError {
    /// None is running in the usual places.
    #[error(
        "no manager is running (looked in {dir}); start one with `levy host`, or start guests with `levy run`, which \
         brings its own; one elsewhere is reached with --run-dir DIR",
        dir = dir.display()
    )]
    None { dir: PathBuf },
    /// Several are running, and none is the default one.
    #[error("several managers are running; choose one with --run-dir: {0}")]
    Several(String),
    /// It cannot be reached.
    #[error("no manager answers at {path}; start one with `levy host`", path = path.display())]
    Unreachable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// What answers there may be another user's.
    #[error(
        "the run directory {dir} is not to be trusted, and was not asked; remove it, or name another with --run-dir",
        dir = dir.display()
    )]
    Untrusted {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is another user's.
    #[error("the run directory {dir} is open to its owner only; ask as that user", dir = dir.display())]
    Closed { dir: PathBuf },
    /// It took too long.
    #[error("the manager at {path} did not answer within {} seconds", after.as_secs(), path = path.display())]
    Silent { path: PathBuf, after: Duration },
    /// It refused.
    #[error("{error}")]
    Refused { status: u16, error: String },
    /// It answered something else than was asked for.
    #[error("the manager at {path} does not speak this API", path = path.display())]
    Garbled {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A way to one manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    dir: PathBuf,
    patience: Duration,
}

impl Client {
    /// The manager whose run directory is `dir`; whether it is there shows with the first question.
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            patience: PATIENCE,
        }
    }

    /// The same manager, which has to answer within `patience`; 20 s otherwise.
    #[must_use]
    pub fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The manager in `dir`; without one the default manager, else the only one that a launcher brought along.
    ///
    /// # Errors
    /// When none is running, or more than one where the choice is not ours.
    pub fn find(dir: Option<&Path>) -> Result<Self, ClientError> {
        if let Some(dir) = dir {
            return Ok(Self::at(dir));
        }
        let mut running = Self::running();
        match running.len() {
            // The refusal says why.
            0 if run_dir::is_strangers(&run_dir::default_dir()) => Ok(Self::at(&run_dir::default_dir())),
            0 => Err(absent(run_dir::default_dir())),
            1 => Ok(running.remove(0)),
            _ if running[0].dir == run_dir::default_dir() => Ok(running.remove(0)),
            _ => {
                let dirs: Vec<_> = running.iter().map(|c| c.dir.display().to_string()).collect();
                Err(ClientError::Several(dirs.join(", ")))
            }
        }
    }

    /// Every manager that answers, of this user or of root: the default one first, then those of launchers.
    pub fn running() -> Vec<Self> {
        let answers = |dir: &PathBuf| {
            !run_dir::is_strangers(dir)
                && std::os::unix::net::UnixStream::connect(run_dir::api_socket(dir)).is_ok()
        };
        std::iter::once(run_dir::default_dir())
            .chain(RunDir::all())
            .filter(answers)
            .map(|dir| Self::at(&dir))
            .collect()
    }

    /// The manager's run directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `GET /host`.
    ///
    /// # Errors
    /// See [`ClientError`]; so for every other question.
    pub fn host(&self) -> Result<HostView, ClientError> {
        self.ask(Method::GET, "/host", None::<&()>)
    }

    /// `PUT /host`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn change_host(&self, change: &HostChange) -> Result<HostView, ClientError> {
        self.ask(Method::PUT, "/host", Some(change))
    }

    /// `GET /guests`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn guests(&self) -> Result<Vec<GuestView>, ClientError> {
        self.ask(Method::GET, "/guests", None::<&()>)
            .map(|list: GuestList| list.guests)
    }

    /// `GET /guests/{name}`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn guest(&self, name: &str) -> Result<GuestView, ClientError> {
        self.ask(Method::GET, &format!("/guests/{}", escaped(name)), None::<&()>)
    }

    /// `PATCH /guests/{name}`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn change_guest(&self, name: &str, change: &GuestChange) -> Result<GuestView, ClientError> {
        self.ask(Method::PATCH, &format!("/guests/{}", escaped(name)), Some(change))
    }

    /// `PATCH /groups/{name}`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn change_group(&self, name: &str, change: &GroupChange) -> Result<GroupView, ClientError> {
        self.ask(Method::PATCH, &format!("/groups/{}", escaped(name)), Some(change))
    }

    /// `POST /guests/{name}/stop`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stop(&self, name: &str, order: &StopOrder) -> Result<GuestView, ClientError> {
        self.ask(
            Method::POST,
            &format!("/guests/{}/stop", escaped(name)),
            Some(order),
        )
    }

    /// `POST /guests/{name}/{what}`, where `what` is stop, pause or resume.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn direct(&self, name: &str, what: &str) -> Result<GuestView, ClientError> {
        self.ask(
            Method::POST,
            &format!("/guests/{}/{what}", escaped(name)),
            None::<&()>,
        )
    }

    /// Any question.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let garbled = |source| ClientError::Garbled {
            path: run_dir::api_socket(&self.dir),
            source,
        };
        let body = body
            .map_or(Ok(Vec::new()), serde_json::to_vec)
            .map_err(|e| garbled(e.into()))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "levy")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| garbled(io::Error::other(e)))?;
        let (status, bytes) = self.exchange(request)?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|e| garbled(e.into()));
        }
        let failure: Failure = serde_json::from_slice(&bytes).map_err(|e| garbled(e.into()))?;
        Err(ClientError::Refused {
            status: status.as_u16(),
            error: failure.error,
        })
    }

    fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ClientError> {
        let path = run_dir::api_socket(&self.dir);
        let unreachable = |source| ClientError::Unreachable {
            path: path.clone(),
            source,
        };
        if let Err(source) = run_dir::trust(&self.dir)
            && source.kind() == io::ErrorKind::PermissionDenied
        {
            let dir = self.dir.clone();
            return Err(ClientError::Untrusted { dir, source });
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(unreachable)?;
        runtime.block_on(async {
            check_path(&path).map_err(unreachable)?;
            let stream = UnixStream::connect(&path).await.map_err(unreachable)?;
            match tokio::time::timeout(self.patience, talk(stream, request)).await {
                Ok(answer) => answer.map_err(|source| ClientError::Garbled {
                    path: path.clone(),
                    source,
                }),
                Err(_) => Err(ClientError::Silent {
                    path: path.clone(),
                    after: self.patience,
                }),
            }
        })
    }
}

async fn talk(stream: UnixStream, request: Request<Full<Bytes>>) -> io::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_LIMIT);
    let bytes = body.collect().await.map_err(io::Error::other)?.to_bytes();
    driver.abort();
    Ok((status, bytes))
}

/// A name as one segment of a path.
fn escaped(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Why no manager was found in the usual place.
fn absent(dir: PathBuf) -> ClientError {
    let connected = std::os::unix::net::UnixStream::connect(run_dir::api_socket(&dir));
    match connected.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
        true => ClientError::Closed { dir },
        false => ClientError::None { dir },
    }
}
