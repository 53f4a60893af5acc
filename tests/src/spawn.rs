//! A guest to be: what it is made of, in the words of the command line.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use levy_launcher::{OneGuest, SessionFiles};
use simulated::Manager;

use crate::console::Trouble;
use crate::{Guest, Lab};

/// Seconds that a guest has to come up before its VMM calls it hanging.
const DEADLINE_SECONDS: u64 = 600;

/// An emulated host with eight guests on one CPU gives each no time for tens of seconds, on a busy machine for longer,
/// which a guest takes for a stall of its own. Real stalls are still longer.
const PATIENT: &str =
    "rcupdate.rcu_cpu_stall_timeout=300 watchdog_thresh=60 sysctl.kernel.hung_task_timeout_secs=600";

/// A guest to be.
#[derive(Debug, Clone)]
pub struct Plan {
    lab: Lab,
    name: String,
    kernel: PathBuf,
    memory_mib: u64,
    min_mib: Option<u64>,
    cpus: u32,
    deadline_seconds: u64,
    trouble: Trouble,
    kernel_words: Vec<String>,
    rest: Vec<OsString>,
    prefix: Vec<String>,
}

impl Plan {
    pub(crate) fn new(lab: Lab, name: &str) -> Self {
        Self {
            kernel: lab.boot().kernel(),
            lab,
            name: name.to_owned(),
            memory_mib: 256,
            min_mib: None,
            cpus: 1,
            deadline_seconds: DEADLINE_SECONDS,
            trouble: Trouble::Fails,
            kernel_words: vec![PATIENT.to_owned()],
            rest: Vec::new(),
            prefix: Vec::new(),
        }
    }

    /// Its kernel; the lab's bzImage unless said.
    pub fn kernel(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.kernel);
        self
    }

    /// Its memory; 256 MiB unless said.
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// What it is guaranteed under a manager; a quarter of its memory unless said.
    pub fn min_mib(mut self, mib: u64) -> Self {
        self.min_mib = Some(mib);
        self
    }

    /// Under `manager`. It shares pages with all other guests of the test.
    pub fn managed_by(self, manager: &Manager) -> Self {
        self.args(["--manager".as_ref(), manager.dir().as_os_str()])
    }

    /// Its swap file grows in the folder `swap`.
    pub fn swapping_to(self, swap: &Path) -> Self {
        self.args(["--swap".as_ref(), swap.as_os_str()])
    }

    /// A private layer over the disk image `image`, in the folder `layers`.
    pub fn over_image(self, image: &Path, layers: &Path) -> Self {
        let folder = format!("TMPDIR={}", layers.display());
        let disk = format!("path={},overlay=on", image.display());
        self.under(&["env", &folder]).args(["--disk", &disk])
    }

    /// Its vCPUs; one unless said.
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// Seconds until `ready` before the VMM calls it hanging.
    pub fn deadline_seconds(mut self, seconds: u64) -> Self {
        self.deadline_seconds = seconds;
        self
    }

    /// Boots from the Debian disk, with a private layer over it.
    pub fn on_disk(self) -> Self {
        let disk = format!("path={},overlay=on", self.lab.disk().display());
        self.args(["--disk", &disk]).kernel_words("root=/dev/vda")
    }

    /// More words for the kernel's command line.
    pub fn kernel_words(mut self, words: &str) -> Self {
        self.kernel_words.push(words.to_owned());
        self
    }

    /// Further arguments of `levy vmm`.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.rest.extend(args.into_iter().map(Into::into));
        self
    }

    /// A command that starts the VMM in its own place, as `unshare --net --` does.
    pub fn under(mut self, words: &[&str]) -> Self {
        self.prefix = words.iter().map(ToString::to_string).collect();
        self
    }

    /// The test wants the guest in trouble: an oops or a stall on its console is not a failure.
    pub fn in_trouble(mut self) -> Self {
        self.trouble = Trouble::Wanted;
        self
    }

    fn command(&self) -> Command {
        let boot = self.lab.boot();
        let mut command = match self.prefix.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(self.lab.levy());
                command
            }
            None => Command::new(self.lab.levy()),
        };
        let min = self.min_mib.map(|mib| format!(",min={mib}M"));
        let memory = format!("size={}M{}", self.memory_mib, min.unwrap_or_default());
        command
            .args(["vmm", "--name", &self.name])
            .arg("--kernel")
            .arg(&self.kernel)
            .arg("--initrd")
            .arg(boot.initramfs())
            .args(["--memory", &memory])
            .args(["--cpus", &self.cpus.to_string()])
            .args(["--deadline", &format!("{}s", self.deadline_seconds)])
            .args(["--cmdline", &self.kernel_words.join(" ")])
            .args(&self.rest);
        command
    }

    /// Starts it.
    pub fn start(self) -> Guest {
        let directory = tempfile::Builder::new()
            .prefix("levy-test-")
            .tempdir()
            .expect("a temporary directory");
        let file = |name: &str| directory.path().join(name);
        let files = SessionFiles {
            control: file("control"),
            agent: file("agent"),
            console: file("console"),
        };
        let mut command = self.command();
        command.stderr(File::create(file("vmm")).expect("a log of the vmm"));
        let session = OneGuest::start(command, files)
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", self.name));
        Guest::new(self.name, session, directory, self.trouble)
    }
}
