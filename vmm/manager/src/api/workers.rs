//! Threads on which requests wait for the manager.
//!
//! They are there from the beginning: where the system has no thread to spare later, the API is served all the same.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// Requests that wait for the manager at a time; more wait for these.
pub(super) const LOOKING: usize = 2;

/// Changes at a time: each waits for the disk, and the next for the one before.
pub(super) const CHANGING: usize = 1;

/// Stack of each: what is put into words lies on the heap.
const STACK: usize = 512 << 10;

type Work = Box<dyn FnOnce() + Send>;

/// The threads; they end with the last clone of this.
#[derive(Debug, Clone)]
pub(super) struct Workers(Sender<Work>);

/// The threads are gone: the API has ended.
#[derive(Debug, thiserror::Error)]
#[error("the API has ended")]
pub(super) struct Ended;

impl Workers {
    /// Starts `count`.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..count {
            let receiver = Arc::clone(&receiver);
            let thread = std::thread::Builder::new()
                .name("api-work".into())
                .stack_size(STACK);
            thread
                .spawn(move || work(&receiver))
                .map_err(levy_protocol::not_started)?;
        }
        Ok(Self(sender))
    }

    /// Runs `work` on one of them. A client that has gone meanwhile does not stop it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let (done, result) = oneshot::channel();
        let work = move || {
            let _ = done.send(work());
        };
        self.0.send(Box::new(work)).map_err(|_| Ended)?;
        result.await.map_err(|_| Ended)
    }
}

fn work(receiver: &Mutex<Receiver<Work>>) {
    loop {
        let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(work) => work(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_beside_other_work_and_its_result_comes_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let workers = Workers::start(LOOKING).unwrap();
        let (go, wait) = channel::<()>();
        let slow = workers.clone();
        runtime.block_on(async {
            let slow = tokio::spawn(async move { slow.run(move || wait.recv().is_ok()).await });
            assert_eq!(workers.run(|| 7).await.unwrap(), 7);
            go.send(()).unwrap();
            assert!(slow.await.unwrap().unwrap());
        });
    }
}
