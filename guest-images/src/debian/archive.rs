//! A private apt directory tree: own sources, indexes and downloads, the system's left alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::mirror::{Mirror, Suite};
use super::package::Package;
use crate::cache::{Cache, Key, Kind};
use crate::tool::Tool;
use crate::{Error, Result};

const APT_GET: Tool = Tool {
    program: "apt-get",
    package: "apt",
};
const APT_CONFIG: Tool = Tool {
    program: "apt-config",
    package: "apt",
};

/// The apt tree is locked like an entry but never replaced as a whole.
const TREE: Kind<'static> = Kind {
    name: "apt",
    needs_mib: 200,
};

/// Indexes older than this are fetched again. Within it a second build asks the network nothing.
const INDEX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Which packages go into a tree.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The kind of cache entry, one path component, as in "qemu".
    pub name: &'a str,
    /// The packages' names.
    pub packages: &'a [&'a str],
    /// Which versions.
    pub prefer: Prefer,
    /// How much comes along.
    pub depth: Depth,
}

/// Which version of a package is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefer {
    /// The newest of bookworm, its updates and its security updates.
    Stable,
    /// The one of bookworm-backports; what that lacks comes as with `Stable`.
    Backports,
}

/// Which packages come along with the named ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// None: the tree holds the named packages only.
    NamedOnly,
    /// All they depend on, down to the C library; recommended packages stay out.
    WithDependencies,
}

/// Debian's archive as seen through a private apt tree.
#[derive(Clone)]
pub struct Archive {
    cache: Cache,
    mirror: Mirror,
    dir: PathBuf,
    settings: Vec<String>,
}

impl Archive {
    /// Sets the tree up in `cache` and fetches the indexes if there are none or they are old.
    ///
    /// When old indexes cannot be renewed (no network) they are used as they are, and the progress line says so.
    ///
    /// # Errors
    /// No Debian archive is known, its keys or apt are missing, or the first fetch fails.
    pub fn open(cache: &Cache) -> Result<Self> {
        let mirror = Mirror::of_this_machine()?;
        let dir = cache.root().join(TREE.name);
        let archive = Self {
            cache: cache.clone(),
            mirror,
            dir,
            settings: connection_settings()?,
        };
        let _lock = cache.lock(TREE)?;
        let sources_changed = archive.write_config()?;
        match archive.index_age() {
            Some(age) if age < INDEX_AGE && !sources_changed => {}
            Some(_) if !sources_changed => {
                if let Err(error) = archive.fetch_indexes() {
                    cache.say(&format!("going on with old package indexes: {error}"));
                }
            }
            _ => archive.fetch_indexes()?,
        }
        Ok(archive)
    }

    /// Fetches the indexes now, however fresh they are.
    ///
    /// # Errors
    /// The archive cannot be reached or its signature does not hold.
    pub fn refresh(&self) -> Result<()> {
        let _lock = self.cache.lock(TREE)?;
        self.fetch_indexes()
    }

    /// The cache this works in.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// How this machine's apt reaches the network, as lines of its configuration.
    pub(crate) fn connection_settings(&self) -> &[String] {
        &self.settings
    }

    /// Lines of sources for everything but backports.
    pub(crate) fn stable_sources(&self) -> Vec<String> {
        let stable = Suite::ALL
            .into_iter()
            .filter(|suite| *suite != Suite::BookwormBackports);
        stable.map(|suite| self.mirror.source(suite)).collect()
    }

    /// The packages that answer `request`, by the signed indexes. Downloads nothing.
    ///
    /// # Errors
    /// A package does not exist or its dependencies cannot be met.
    pub fn resolve(&self, request: &Request<'_>) -> Result<Vec<Package>> {
        let what = format!("looking up the packages {}", request.packages.join(" "));
        // Another process may be writing the configuration, or fetching indexes.
        let _lock = self.cache.lock(TREE)?;
        let answer = APT_GET.run(&what, self.select(request).arg("--print-uris"))?;
        let lines = answer.lines().filter(|line| line.starts_with('\''));
        lines.map(Package::from_apt).collect()
    }

    /// A directory with the files of the packages that answer `request`: unpacked, no scripts run, files owned by
    /// the caller. Built once per set of package versions; latest first when versions change.
    ///
    /// # Errors
    /// As [`Archive::resolve`], and when a download fails or its hash is wrong.
    pub fn tree(&self, request: &Request<'_>) -> Result<PathBuf> {
        let packages = self.resolve(request)?;
        self.tree_of(request.name, &packages)
    }

    /// As [`Archive::tree`], of packages resolved before.
    ///
    /// # Errors
    /// As [`Archive::tree`].
    pub fn tree_of(&self, name: &str, packages: &[Package]) -> Result<PathBuf> {
        let kind = Kind {
            name,
            needs_mib: 1024,
        };
        let key = packages.iter().fold(Key::new("tree 1"), |key, package| {
            key.with(package.name.as_bytes()).with(package.sha256.as_bytes())
        });
        self.cache.entry(kind, &key, |aside| self.unpack(packages, aside))
    }

    /// Downloads `packages` and unpacks them below `into`.
    ///
    /// # Errors
    /// A download fails, a hash is wrong, or the disk is full; `into` is then incomplete.
    pub fn unpack(&self, packages: &[Package], into: &Path) -> Result<()> {
        let downloads = self.dir.join("archives");
        let _lock = self.cache.lock(TREE)?;
        self.download(packages)?;
        self.cache.say(&format!("unpacking {} packages", packages.len()));
        packages
            .iter()
            .try_for_each(|package| package.unpack(&downloads, into))?;
        // The packages live on as trees; keeping them twice would double the cache.
        for package in packages {
            let path = downloads.join(&package.file);
            fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        }
        Ok(())
    }

    /// Downloads exactly these versions. An index that is older than the archive is renewed once.
    fn download(&self, packages: &[Package]) -> Result<()> {
        self.cache
            .say(&format!("downloading {} packages", packages.len()));
        let what = format!("downloading {} packages", packages.len());
        let exact = || {
            packages
                .iter()
                .map(|package| format!("{}={}", package.name, package.version))
        };
        let attempt = || {
            let mut apt = self.apt();
            apt.current_dir(self.dir.join("archives"))
                .arg("download")
                .args(exact());
            APT_GET.run(&what, &mut apt)
        };
        attempt().or_else(|first| {
            self.cache.say("a download failed: fetching the indexes again");
            self.fetch_indexes()?;
            attempt().map_err(|_| first)
        })?;
        Ok(())
    }

    /// `apt-get` that selects what the request asks for.
    fn select(&self, request: &Request<'_>) -> Command {
        let mut apt = self.apt();
        // No "-t bookworm" for Stable: it would prefer the release's version over a newer security update.
        if request.prefer == Prefer::Backports {
            apt.args(["-t", Suite::BookwormBackports.name()]);
        }
        match request.depth {
            Depth::NamedOnly => apt.arg("download"),
            Depth::WithDependencies => apt.args(["--no-install-recommends", "--assume-yes", "install"]),
        };
        apt.args(request.packages);
        apt
    }

    fn fetch_indexes(&self) -> Result<()> {
        self.cache.say(&format!(
            "fetching package indexes from {}",
            self.mirror.address(Suite::Bookworm)
        ));
        let mut apt = self.apt();
        // Without this apt calls a failed fetch a warning and ends with status 0.
        apt.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        APT_GET.run("fetching the package indexes", &mut apt)?;
        let stamp = self.dir.join("fetched");
        fs::write(&stamp, "").map_err(Error::file("write", &stamp))
    }

    fn index_age(&self) -> Option<Duration> {
        let fetched = fs::metadata(self.dir.join("fetched")).ok()?.modified().ok()?;
        // A clock set back makes the index look fresh, which is harmless.
        Some(SystemTime::now().duration_since(fetched).unwrap_or_default())
    }

    /// `apt-get` that reads our configuration and none of the system's.
    fn apt(&self) -> Command {
        let mut apt = APT_GET.command();
        apt.env("APT_CONFIG", self.dir.join("apt.conf")).arg("-qq");
        apt
    }

    /// Writes apt's configuration; true if the sources are others than before.
    fn write_config(&self) -> Result<bool> {
        for name in ["lists/partial", "archives/partial", "empty"] {
            let path = self.dir.join(name);
            fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
        }
        let write = |name: &str, text: &str| {
            let path = self.dir.join(name);
            fs::write(&path, text).map_err(Error::file("write", &path))
        };
        write("status", "")?;
        let settings: String = self.settings.iter().map(|line| format!("{line}\n")).collect();
        write("apt.conf", &(self.config() + &settings))?;
        let sources = self.mirror.sources_list()?;
        let changed = fs::read_to_string(self.dir.join("sources.list")).ok() != Some(sources.clone());
        if changed {
            // Also for the next process, should the fetch that follows fail.
            let _ = fs::remove_file(self.dir.join("fetched"));
        }
        write("sources.list", &sources)?;
        Ok(changed)
    }

    fn config(&self) -> String {
        let dir = self.dir.display();
        format!(
            r#"// Written anew at each use.
Dir::State "{dir}";
Dir::State::lists "{dir}/lists";
Dir::State::status "{dir}/status";
Dir::Cache "{dir}";
Dir::Cache::archives "{dir}/archives";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "{dir}/empty";
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "{dir}/empty";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "{dir}/empty";
Dir::Log "{dir}";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Sandbox::User "root";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::ForceHash "SHA256";
Acquire::Languages "none";
Acquire::Retries "3";
"#
        )
    }
}

/// How this machine's apt reaches the network (proxies, timeouts, clock checks): the archive is reached the same way.
fn connection_settings() -> Result<Vec<String>> {
    let all = APT_CONFIG.run("reading apt's settings", APT_CONFIG.command().arg("dump"))?;
    Ok(all
        .lines()
        .filter(|line| is_connection_setting(line))
        .map(str::to_owned)
        .collect())
}

fn is_connection_setting(line: &str) -> bool {
    const TAKEN: &[&str] = &[
        "Acquire::http::",
        "Acquire::https::",
        "Acquire::Check-Date",
        "Acquire::Check-Valid-Until",
        "Acquire::ForceIPv4",
        "Acquire::ForceIPv6",
    ];
    TAKEN.iter().any(|name| line.starts_with(name)) && !line.ends_with("\"\";")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_taken_over_and_hooks_are_not() {
        assert!(is_connection_setting(
            "Acquire::http::Proxy \"http://p.example:3128\";"
        ));
        assert!(!is_connection_setting("Acquire::http::Proxy \"\";"));
        assert!(!is_connection_setting("APT::Update::Post-Invoke:: \"rm -f x\";"));
        assert!(!is_connection_setting(
            "Acquire::AllowInsecureRepositories \"1\";"
        ));
    }

    #[test]
    fn packages_are_looked_up_only_while_no_other_process_writes_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let archive = Archive {
            cache: cache.clone(),
            mirror: Mirror::of_this_machine().unwrap(),
            dir: cache.root().join(TREE.name),
            settings: Vec::new(),
        };
        let writing = cache.lock(TREE).unwrap();
        let inode = format!(
            ":{} ",
            std::os::unix::fs::MetadataExt::ino(&writing.metadata().unwrap())
        );
        let request = Request {
            name: "none",
            packages: &["there-is-no-such-package"],
            prefer: Prefer::Stable,
            depth: Depth::NamedOnly,
        };
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| archive.resolve(&request));
            let waits = || {
                let locks = fs::read_to_string("/proc/locks").unwrap();
                locks
                    .lines()
                    .any(|lock| lock.contains("->") && lock.contains(&inode))
            };
            while !waits() {
                assert!(!asking.is_finished(), "it looked up while another may write");
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(writing);
            assert!(asking.join().unwrap().is_err());
        });
    }
}
