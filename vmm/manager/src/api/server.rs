//! The socket and its clients.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};

use super::asker::Asker;
use super::client_slots::ClientSlots;
use super::routes::{self, Served};
use super::workers::{CHANGING, LOOKING, Workers};
use super::{CONNECTIONS, PATIENCE};
use crate::host::Host;
use levy_protocol::socket::{SocketError, SocketFile};

/// How long a client may take to send a request's head.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes in the longest head of a request.
const HEAD_LIMIT: usize = 16 << 10;

/// Time without a client after which the socket's file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Why there is no API.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No thread, or what it needs.
    #[error("the system does not let the manager serve its API")]
    System(#[from] io::Error),
}

/// A served API; ends, and its socket with it, when this is dropped.
#[derive(Debug)]
pub struct Server {
    file: SharedFile,
    _end: oneshot::Sender<()>,
}

/// The socket's file; none once the API is over.
type SharedFile = Arc<Mutex<Option<SocketFile>>>;

impl Drop for Server {
    fn drop(&mut self) {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Serves the API of `host` in its run directory `dir`, on a thread of its own.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(host: Host, dir: &Path) -> Result<Server, ServeError> {
    let path = levy_protocol::run_dir::api_socket(dir);
    let (file, listener) = open(&path)?;
    let file = Arc::new(Mutex::new(Some(file)));
    let socket = Socket {
        path,
        file: Arc::clone(&file),
        host: host.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let (looking, changing) = (Workers::start(LOOKING)?, Workers::start(CHANGING)?);
    let (end, ended) = oneshot::channel::<()>();
    let body = move || {
        let served = runtime.block_on(async {
            let listener = UnixListener::from_std(listener)?;
            // Whether the other end was dropped or used: it is over.
            let served = accept(listener, socket, Served::new(host, looking, changing));
            tokio::select! { () = served => {}, _ = ended => {} }
            io::Result::Ok(())
        });
        if let Err(error) = served {
            log::error!("the API cannot be served: {error}");
        }
        runtime.shutdown_background();
    };
    let thread = std::thread::Builder::new().name("api".into());
    thread.spawn(body).map_err(levy_protocol::not_started)?;
    Ok(Server { file, _end: end })
}

/// Listens at `path`.
fn open(path: &Path) -> Result<(SocketFile, std::os::unix::net::UnixListener), ServeError> {
    let (file, listener) = SocketFile::bind(path)?;
    // A client that may connect may stop guests, so only their owner may connect.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok((file, listener))
}

/// The socket's file, which is made again when it is removed.
struct Socket {
    path: PathBuf,
    file: SharedFile,
    host: Host,
}

impl Socket {
    /// What listens from now on, where the file was removed from a run directory that is still the manager's. What stands
    /// in the way may go: it is looked at again.
    fn look_after(&self) -> Option<UnixListener> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.as_ref()?.is_there() || !self.host.owns_run_dir() {
            return None;
        }
        let (fresh, listener) = open(&self.path).ok()?;
        *file = Some(fresh);
        log::warn!("{} was removed; it is there again", self.path.display());
        UnixListener::from_std(listener).ok()
    }
}

async fn accept(mut listener: UnixListener, socket: Socket, served: Served) {
    let slots = ClientSlots::new(CONNECTIONS);
    let router = routes::router(served.clone());
    // Who leaves is looked at one by one: a flood takes no more than one worker, and is not counted in full.
    let looking = Arc::new(Semaphore::new(1));
    loop {
        let next = loop {
            match tokio::time::timeout(LOOK, listener.accept()).await {
                Ok(next) => break next,
                Err(_) => listener = socket.look_after().unwrap_or(listener),
            }
        };
        match next {
            Ok((stream, _)) => {
                let asker = Asker::of(&stream);
                let service = TowerToHyperService::new(router.clone().layer(Extension(asker.clone())));
                let connection = converse(stream, service);
                let mut slot = slots.take(asker.pid());
                let (served, looking) = (served.clone(), Arc::clone(&looking));
                tokio::spawn(async move {
                    tokio::select! { () = connection => {}, () = slot.lost() => {} }
                    drop(slot);
                    if let Ok(_one) = looking.try_acquire() {
                        asker.leave(served).await;
                    }
                });
            }
            Err(error) => {
                log::warn!("a client of the API could not be let in: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One request and its answer.
fn converse(
    stream: UnixStream,
    service: TowerToHyperService<axum::Router>,
) -> impl Future<Output = ()> + Send {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    async move {
        // Clients that break off, or are broken off, are their own business.
        match tokio::time::timeout(PATIENCE, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("a client of the API: {error}"),
            Err(_) => log::debug!("a client of the API took too long"),
        }
    }
}

#[cfg(test)]
mod tests {
    use allocator::Pages;

    use super::*;
    use crate::host::Sockets;
    use crate::policy::Settings;

    #[test]
    fn a_socket_is_made_again_where_its_file_was_removed_and_left_alone_where_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::new(Pages::from_mib(256));
        let host = Host::open(Sockets::in_dir(dir.path()), settings, Pages::from_mib(4096)).unwrap();
        let path = levy_protocol::run_dir::api_socket(dir.path());
        let (file, listener) = open(&path).unwrap();
        let socket = Socket {
            path,
            file: Arc::new(Mutex::new(Some(file))),
            host: host.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        assert!(socket.look_after().is_none());
        let asked = listener.accept().map(drop).map_err(|error| error.kind());
        assert_eq!(
            asked,
            Err(io::ErrorKind::WouldBlock),
            "it is no client of its own"
        );
        std::fs::remove_file(&socket.path).unwrap();
        let again = socket.look_after();
        assert!(again.is_some());
        assert!(std::os::unix::net::UnixStream::connect(&socket.path).is_ok());
        std::fs::remove_file(&socket.path).unwrap();
        host.close();
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(socket.look_after().is_none(), "the run directory is gone");
    }
}
