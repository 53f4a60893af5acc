//! What a process may have at a time, and what to do where that is too little.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Bytes that the first thread of a command takes at most.
const STACK: u64 = 1 << 20;

/// The limit of open files since this process raised it: a confined thread may not ask for it.
static OPEN_FILES: OnceLock<Option<u64>> = OnceLock::new();

fn open_files() -> Option<u64> {
    let asked = || getrlimit(Resource::Nofile).current;
    OPEN_FILES.get().copied().unwrap_or_else(asked)
}

/// Raises the limit of open files as far as this process may by itself: many systems begin with 1024, of which a guest
/// takes several. Where the kernel refuses, the limit stays.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        log::debug!("the limit of open files stays: {error}");
    }
    let _ = OPEN_FILES.set(getrlimit(Resource::Nofile).current);
}

/// Raises the limit of the first thread's stack to 1 MiB where it is less.
///
/// # Errors
/// When this process may not do that; says what to do.
pub fn raise_stack() -> io::Result<()> {
    let limit = getrlimit(Resource::Stack);
    let least = |bytes: Option<u64>| bytes.map(|bytes| bytes.max(STACK));
    let raised = Rlimit {
        current: least(limit.current),
        maximum: least(limit.maximum),
    };
    if raised == limit {
        return Ok(());
    }
    setrlimit(Resource::Stack, raised).map_err(|error| {
        let has = shown(limit.current.map(|bytes| bytes >> 10));
        let cure = "raise that with `ulimit -s`, or LimitSTACK= of its service";
        let text = format!(
            "this process may have {has} KiB of stack and needs {}; {cure}: {error}",
            STACK >> 10
        );
        io::Error::new(io::Error::from(error).kind(), text)
    })
}

/// What to do about `error`, where a limit is at fault that it does not name.
pub fn cure(error: &io::Error) -> Option<String> {
    match error.raw_os_error()? {
        libc::EMFILE => Some(format!(
            "this process may have {} open files; raise that with `ulimit -n`, or LimitNOFILE= of its service",
            shown(open_files())
        )),
        libc::ENFILE => Some("this machine may have no more open files; raise sysctl fs.file-max".to_owned()),
        libc::ENOMEM => memory_limits().map(|limits| format!("{limits}; raise the one that is reached")),
        _ => None,
    }
}

/// What this process may have of memory, where that is less than the machine has. A thread's stack is memory, too.
fn memory_limits() -> Option<String> {
    let limits = [
        (Resource::Data, "of data (`ulimit -d`, LimitDATA= of a service)"),
        (Resource::As, "of address space (`ulimit -v`, LimitAS=)"),
    ];
    let limits = limits.map(|(limit, what)| Some(format!("{} KiB {what}", getrlimit(limit).current? >> 10)));
    let limits: Vec<_> = limits.into_iter().flatten().collect();
    (!limits.is_empty()).then(|| format!("this process may have {}", limits.join(" and ")))
}

/// Says of memory that could not be had which limits there are, where a limit may be at fault.
pub fn no_memory(error: io::Error) -> io::Error {
    match cure(&error).filter(|_| error.raw_os_error() == Some(libc::ENOMEM)) {
        Some(cure) => io::Error::new(error.kind(), format!("{error}; {cure}")),
        None => error,
    }
}

/// Says of a thread or process that could not be started which limits there are, where a limit is at fault.
pub fn not_started(error: io::Error) -> io::Error {
    if error.raw_os_error() != Some(libc::EAGAIN) {
        return error;
    }
    let text = format!(
        "{error}; this user may have {} threads and processes (`ulimit -u`, TasksMax= of a service), the control group {} \
         (pids.max), the machine {} (sysctl kernel.threads-max){}: raise the one that is reached",
        shown(getrlimit(Resource::Nproc).current),
        group_limit().unwrap_or_else(|| "any number of".to_owned()),
        std::fs::read_to_string("/proc/sys/kernel/threads-max")
            .map_or("some".to_owned(), |n| n.trim().to_owned()),
        memory_limits().map_or(String::new(), |limits| format!("; {limits}")),
    );
    io::Error::new(error.kind(), text)
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or("any number of".to_owned(), |limit| limit.to_string())
}

/// The least `pids.max` of the control groups that this process is in, of version 2 or of version 1.
fn group_limit() -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let below = |controller: &str, mount: &str| {
        let own = groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(":/")?;
            (controllers == controller).then_some(path)
        });
        own.map(|own| Path::new(mount).join(own))
    };
    let paths = [below("", "/sys/fs/cgroup"), below("pids", "/sys/fs/cgroup/pids")];
    let limits = paths.iter().flatten().flat_map(|path| {
        path.ancestors()
            .filter_map(|group| std::fs::read_to_string(group.join("pids.max")).ok())
            .filter_map(|text| text.trim().parse::<u64>().ok())
    });
    limits.min().map(|least| least.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_limits_name_the_limit_and_others_stay_as_they_are() {
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        let limit = getrlimit(Resource::Nofile).current.unwrap().to_string();
        let cure = cure(&error).unwrap();
        assert!(cure.contains(&limit) && cure.contains("ulimit -n"), "{cure}");
        assert!(super::cure(&io::ErrorKind::NotFound.into()).is_none());
        let full = not_started(io::Error::from_raw_os_error(libc::EAGAIN)).to_string();
        assert!(full.contains("ulimit -u") && full.contains("pids.max"), "{full}");
        let other = not_started(io::Error::from_raw_os_error(libc::ENOMEM));
        assert_eq!(other.raw_os_error(), Some(libc::ENOMEM));
    }

    #[test]
    fn what_is_refused_for_want_of_memory_names_its_limits_where_there_are_any() {
        let refused = || no_memory(io::Error::from_raw_os_error(libc::ENOMEM)).to_string();
        assert!(!refused().contains("ulimit"), "{}", refused());
        let limit = getrlimit(Resource::Data);
        // So much that no other test meets it.
        let most = Rlimit {
            current: Some(1 << 50),
            ..limit
        };
        setrlimit(Resource::Data, most).unwrap();
        assert!(
            refused().contains("1099511627776 KiB of data (`ulimit -d`"),
            "{}",
            refused()
        );
        let thread = not_started(io::Error::from_raw_os_error(libc::EAGAIN)).to_string();
        assert!(
            thread.contains("ulimit -u") && thread.contains("ulimit -d"),
            "{thread}"
        );
        setrlimit(Resource::Data, limit).unwrap();
        let other = no_memory(io::Error::from_raw_os_error(libc::EMFILE));
        assert_eq!(other.raw_os_error(), Some(libc::EMFILE));
    }

    #[test]
    fn the_limit_of_open_files_goes_as_high_as_it_may() {
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
