//! When what the next manager has to know is written down.
//!
//! A guest hears that it is admitted, and a client that something is set, after that is on the disk. A thread of its own
//! writes for guests; only the client that changes something waits for the disk itself. Reports, rounds and what other
//! clients ask wait for none, however long it does not answer.

use super::host::Host;
use super::kept::KeptSettings;
use super::manager::Manager;

impl Host {
    /// Writes down what the next manager has to know. What was changed holds beyond this manager's life from here on;
    /// where the disk refuses, [`Host::unkept`] says so. `false` when the manager closes or its run directory is
    /// not its own any more: the file may be its successor's, and nothing is written.
    pub fn keep(&self) -> bool {
        // The newest is written last: this lock is held from looking to writing.
        let mut keeper = self.keeper();
        if self.is_closing() || !self.owns_run_dir() {
            return false;
        }
        let mut snapshot = self.state().manager.snapshot();
        keeper.write(&snapshot);
        let failure = keeper.failure();
        if failure.is_some() {
            // No guest is written down: each that returns has the file written anew.
            snapshot.guests.clear();
        }
        *self.last_failure() = failure;
        self.persisted().put(snapshot);
        true
    }

    /// Changes settings by `apply`, and keeps `change`, which says the same: of two changes the same one is the later here
    /// and there.
    ///
    /// # Errors
    /// That of `apply`; nothing is kept then.
    pub fn change_settings<E>(
        &self,
        change: KeptSettings,
        apply: impl FnOnce(&mut Manager) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut keeper = self.keeper();
        apply(&mut self.state().manager)?;
        keeper.change(change);
        drop(keeper);
        self.keep();
        Ok(())
    }

    /// Why what was set and promised would be lost with this manager, where that is so.
    pub fn unkept(&self) -> Option<String> {
        self.last_failure().clone()
    }

    /// Writes down what has changed, each time that it has, until the manager closes.
    pub(super) fn keep_when_outdated(&self) {
        while !self.is_closing() {
            self.write_trigger().wait();
            self.keep();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use allocator::Pages;
    use page_share::GuestProcess;

    use super::*;
    use crate::host::{HostError, Sockets};
    use crate::kept::Kept;
    use crate::manager::{Change, Event};
    use crate::policy::Settings;
    use crate::registry::{Applicant, ProcessId};
    use levy_protocol::link::{FromManager, FromVmm, Hello, Line, Lines, Report};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn settings() -> Settings {
        Settings::new(Pages::from_mib(256))
    }

    fn host(dir: &Path) -> Host {
        Host::open(Sockets::in_dir(dir), settings(), Pages::from_mib(4096)).unwrap()
    }

    fn guests_kept(dir: &Path) -> usize {
        let kept = Kept::read(&Sockets::in_dir(dir).kept).unwrap();
        kept.unwrap().guests.len()
    }

    /// A guest that `process` runs.
    fn admit(host: &Host, process: &Child) {
        let handle = GuestProcess::of_child(process.id()).unwrap();
        let (pid, started) = (handle.pid(), handle.started().unwrap());
        let process = ProcessId { pid, started };
        let mut state = host.state();
        assert!(state.manager.lets_connect(Instant::now(), pid));
        state.handle(Event::Connected { connection: 1, pid });
        state.processes.offer(process, handle);
        state.handle(Event::Introduced {
            connection: 1,
            applicant: Ok(Applicant {
                hello: Hello::new("g", 64 << 20).with_min(16 << 20),
                process,
                domain: Ok(()),
                swap_device: None,
            }),
            hung_up: false,
        });
        assert_eq!(state.manager.registry().guests().count(), 1);
    }

    fn child() -> Child {
        let mut cat = Command::new("cat");
        cat.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_manager_that_has_closed_leaves_its_successors_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (before, mut guest) = (host(dir.path()), child());
        before.close();
        let next = host(dir.path());
        admit(&next, &guest);
        assert!(next.keep());
        assert!(!before.keep());
        assert_eq!(guests_kept(dir.path()), 1);
        next.close();
        guest.kill().unwrap();
        guest.wait().unwrap();
    }

    #[test]
    fn a_manager_closes_its_sockets_after_its_last_write() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path());
        let socket = Sockets::in_dir(dir.path()).guests;
        let writing = host.keeper();
        let closer = host.clone();
        let closing = std::thread::spawn(move || closer.close());
        // As long as a socket lets it know that it is too late.
        std::thread::sleep(Duration::from_millis(600));
        assert!(
            UnixStream::connect(&socket).is_ok(),
            "no other manager may begin yet"
        );
        drop(writing);
        closing.join().unwrap();
        assert!(UnixStream::connect(&socket).is_err());
    }

    #[test]
    fn the_dead_are_removed_while_the_disk_does_not_answer() {
        let dir = tempfile::tempdir().unwrap();
        let (host, mut guest) = (host(dir.path()), child());
        admit(&host, &guest);
        assert!(host.keep());
        let writing = host.keeper();
        guest.kill().unwrap();
        guest.wait().unwrap();
        let (done, is_done) = channel();
        let remover = host.clone();
        std::thread::spawn(move || {
            remover.look_for_the_dead();
            let _ = done.send(());
        });
        is_done.recv_timeout(PATIENCE).expect("it waits for no disk");
        assert_eq!(
            (host.registry().guests().count(), guests_kept(dir.path())),
            (0, 1)
        );
        drop(writing);
        let began = Instant::now();
        while guests_kept(dir.path()) > 0 {
            assert!(began.elapsed() < PATIENCE, "it is written down in the end");
            std::thread::sleep(Duration::from_millis(10));
        }
        host.close();
    }

    #[test]
    fn a_guest_whose_process_died_a_moment_ago_comes_back_in_another() {
        let dir = tempfile::tempdir().unwrap();
        let (host, mut before) = (host(dir.path()), child());
        admit(&host, &before);
        before.kill().unwrap();
        before.wait().unwrap();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (connection, pid) = (2, std::process::id());
        host.handle(Event::Connected { connection, pid });
        let hello = Hello::new("g", 64 << 20).with_min(16 << 20);
        let effects = host.introduce(connection, hello, &ours);
        host.carry_out(effects);
        let pids: Vec<u32> = host
            .registry()
            .guests()
            .map(|(_, process)| process.id.pid)
            .collect();
        assert_eq!(pids, [pid]);
        host.close();
    }

    fn introduce(dir: &Path, name: &str) -> (UnixStream, Lines) {
        let stream = UnixStream::connect(Sockets::in_dir(dir).guests).unwrap();
        let hello = Hello::new(name, 16 << 20).with_min(8 << 20);
        Lines::send(&mut &stream, &FromVmm::Hello(hello)).unwrap();
        (stream, Lines::default())
    }

    fn is_welcome((stream, lines): &mut (UnixStream, Lines), patience: Duration) -> bool {
        stream.set_read_timeout(Some(patience)).unwrap();
        let heard = lines.next::<FromManager>(&mut &*stream);
        matches!(heard, Ok(Line::Message(FromManager::Welcome(_))))
    }

    #[test]
    fn guests_that_are_written_down_are_heard_while_the_disk_does_not_answer() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path());
        host.allow_several_in_one_process();
        let mut guest = introduce(dir.path(), "g");
        assert!(is_welcome(&mut guest, PATIENCE));
        let writing = host.keeper();
        let mut new = introduce(dir.path(), "h");
        assert!(!is_welcome(&mut new, Duration::from_millis(500)));
        drop(guest);
        let mut again = introduce(dir.path(), "g");
        assert!(is_welcome(&mut again, PATIENCE), "it waits for no disk");
        Lines::send(&mut &again.0, &FromVmm::Report(Report::default())).unwrap();
        let began = Instant::now();
        while host.counters().reports == 0 {
            assert!(began.elapsed() < PATIENCE, "its reports wait for no disk");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(host.unkept(), None);
        drop(writing);
        assert!(is_welcome(&mut new, PATIENCE));
        assert_eq!(guests_kept(dir.path()), 2);
        host.close();
    }

    #[test]
    fn a_guest_that_returns_has_written_what_could_not_be_written_before() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path());
        // No file takes the place of a folder; the first is on its way.
        let in_the_way = Sockets::in_dir(dir.path()).kept;
        let began = Instant::now();
        while std::fs::remove_file(&in_the_way).is_err() || std::fs::create_dir(&in_the_way).is_err() {
            assert!(began.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut guest = introduce(dir.path(), "g");
        assert!(is_welcome(&mut guest, PATIENCE) && host.unkept().is_some());
        std::fs::remove_dir(&in_the_way).unwrap();
        drop(guest);
        let mut again = introduce(dir.path(), "g");
        assert!(is_welcome(&mut again, PATIENCE));
        assert_eq!((host.unkept(), guests_kept(dir.path())), (None, 1));
        host.close();
    }

    #[test]
    fn a_change_that_comes_while_another_is_kept_is_the_later_of_both() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path());
        let budget = |mib: u64| {
            let change = KeptSettings {
                budget_bytes: Some(mib << 20),
                ..KeptSettings::default()
            };
            let pages = Pages::from_mib(mib);
            (change, move |manager: &mut Manager| {
                manager.change(Change::Settings(Settings::new(pages)))
            })
        };
        std::thread::scope(|scope| {
            for mib in 300..332 {
                let (host, (change, apply)) = (&host, budget(mib));
                scope.spawn(move || host.change_settings(change, apply).unwrap());
            }
        });
        let holds = host.registry().policy().settings().budget;
        let kept = Kept::read(&Sockets::in_dir(dir.path()).kept).unwrap().unwrap();
        assert_eq!(kept.settings.budget_bytes, Some(holds.get() * 4096));
        host.close();
    }

    #[test]
    fn a_file_that_cannot_be_read_keeps_the_manager_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        let sockets = Sockets {
            kept: plain.join("kept.json"),
            ..Sockets::in_dir(dir.path())
        };
        let error = Host::open(sockets.clone(), settings(), Pages::ZERO).unwrap_err();
        assert!(matches!(error, HostError::Kept { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains("plain/kept.json") && text.contains("remove"),
            "{text}"
        );
        assert!(!sockets.guests.exists() && !sockets.pages.exists());
    }
}
