//! The VMM's end of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, atomic::AtomicUsize, atomic::Ordering};
use std::thread;
use std::time::Duration;

use levy_protocol::control::{Reply, Request};

use crate::confine::{self, Role};
use crate::event::Event;
use crate::lock::lock;

/// Connections at a time; more wait in the backlog.
const MOST: usize = 8;
/// Bytes in the longest request.
const LINE: u64 = 64 << 10;
/// A client that does not read its reply within this time is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a process hears that runs another guest.
const UNWELCOME: &str = "a guest's process asks nothing here: its guest may speak through it";
/// Time until the next attempt after a client could not be let in.
const RETRY: Duration = Duration::from_millis(100);
/// How long a process that ends waits until its clients have their replies.
const LAST: Duration = Duration::from_secs(1);

/// Requests that were read and whose replies are not written yet.
#[derive(Clone, Debug, Default)]
pub struct Unanswered(Arc<(Mutex<usize>, Condvar)>);

/// One of them, until this is dropped.
struct Owed(Unanswered);

impl Unanswered {
    fn owe(&self) -> Owed {
        *lock(&self.0.0) += 1;
        Owed(self.clone())
    }

    /// Waits until there are none, but no longer than a client may be slow: the process is about to end, and a client
    /// that asked for that is to hear so.
    pub fn settle(&self) {
        let (count, changed) = &*self.0;
        let count = lock(count);
        // However it ends, the process does.
        drop(changed.wait_timeout_while(count, LAST, |count| *count > 0));
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let (count, changed) = &*self.0.0;
        *lock(count) -= 1;
        changed.notify_all();
    }
}

/// Accepts connections on `listener` for the rest of the process and passes their requests on to `events`.
///
/// # Errors
/// When the thread cannot be started.
pub fn serve(listener: UnixListener, events: Sender<Event>) -> io::Result<Unanswered> {
    let open = Arc::new(AtomicUsize::new(0));
    let unanswered = Unanswered::default();
    let owed = unanswered.clone();
    spawn("control", move || {
        confine::enter(Role::Control);
        loop {
            // Out of descriptors or memory for a moment; clients wait in the backlog meanwhile.
            let Ok((client, _)) = listener.accept() else {
                thread::sleep(RETRY);
                continue;
            };
            if !confine::is_welcome(&client) {
                // It may be gone, and reads nothing then.
                let _ = answer(&client, &Reply::Error(UNWELCOME.to_owned()));
                continue;
            }
            while open.load(Ordering::SeqCst) >= MOST {
                thread::sleep(Duration::from_millis(20));
            }
            open.fetch_add(1, Ordering::SeqCst);
            let (events, owed, still_open) = (events.clone(), owed.clone(), Arc::clone(&open));
            let talking = spawn("control client", move || {
                // A client that breaks off is its own business.
                let _ = talk(&client, &events, &owed);
                still_open.fetch_sub(1, Ordering::SeqCst);
            });
            if talking.is_err() {
                open.fetch_sub(1, Ordering::SeqCst);
            }
        }
    })
    // Said here, not where clients' threads are started: those are confined, and may open nothing to say why.
    .map_err(levy_protocol::not_started)?;
    Ok(unanswered)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let builder = thread::Builder::new().name(name.into()).stack_size(128 << 10);
    builder.spawn(body).map(|_| ())
}

fn talk(client: &UnixStream, events: &Sender<Event>, unanswered: &Unanswered) -> io::Result<()> {
    client.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::with_capacity(4096, client);
    loop {
        let mut line = Vec::new();
        if (&mut reader).take(LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let _owed = unanswered.owe();
        let reply = match serde_json::from_slice(&line) {
            Ok(request) => ask(request, events),
            Err(e) => Reply::Error(e.to_string()),
        };
        answer(client, &reply)?;
        if !line.ends_with(b"\n") {
            return Ok(());
        }
    }
}

fn answer(mut client: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut text = serde_json::to_vec(reply)?;
    text.push(b'\n');
    client.write_all(&text)
}

fn ask(request: Request, events: &Sender<Event>) -> Reply {
    let (answer, answered) = channel();
    let gone = || Reply::Error("the guest has ended".to_owned());
    if events.send(Event::Control(request, answer)).is_err() {
        return gone();
    }
    answered.recv().unwrap_or_else(|_| gone())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn once_nothing_is_unanswered_clients_have_their_replies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let (events, heard) = channel();
        let unanswered = serve(UnixListener::bind(&path).unwrap(), events).unwrap();
        for _ in 0..200 {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(b"{\"do\":\"status\"}\n").unwrap();
            let Event::Control(_, reply) = heard.recv().unwrap() else {
                panic!("a client can ask, and nothing else");
            };
            reply.send(Reply::Ok("well".into())).unwrap();
            unanswered.settle();
            assert!(rustix::io::ioctl_fionread(client.as_fd()).unwrap() > 0);
        }
    }

    #[test]
    fn a_client_that_reads_nothing_holds_no_process_that_ends() {
        let unanswered = Unanswered::default();
        let owed = unanswered.owe();
        unanswered.settle();
        drop(owed);
        assert_eq!(*unanswered.0.0.lock().unwrap(), 0);
    }
}
