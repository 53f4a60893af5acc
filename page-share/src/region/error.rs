//! Why a region cannot be made.

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::region::run::PageRun;

/// Oldest kernel whose UFFDIO_MOVE is complete and correct, for messages.
pub(crate) const KERNEL: &str = "Linux 6.12.37, 6.15.6, 6.16 or later";

/// Why [`Region::adopt`](crate::Region::adopt) refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The kernel lacks a feature.
    #[error(
        "this kernel ({release}) lacks {feature}, which sharing, sampling and swap need; run {KERNEL}, \
         or go on without them"
    )]
    KernelTooOld {
        /// What is missing, by the kernel's own name.
        feature: &'static str,
        /// The running kernel's release.
        release: String,
    },
    /// No permission to use userfaultfd for faults taken inside the kernel, which KVM's are.
    #[error("userfaultfd cannot be opened; give this user access to /dev/userfaultfd or CAP_SYS_PTRACE")]
    Userfaultfd(#[source] std::io::Error),
    /// The memory is not of a kind that can be managed.
    #[error("{run:?} is {found}; only private anonymous memory can be managed")]
    WrongMemory {
        /// The pages.
        run: PageRun,
        /// What /proc/self/maps says about them.
        found: String,
    },
    /// The ranges overlap, one is empty, or there is none.
    #[error("the guest's ranges overlap, one of them is empty, or there is none")]
    Ranges,
    /// Two ranges are the same memory.
    #[error("{run:?} and another range of the guest overlap: they are the same memory of this process")]
    SameMemory {
        /// The pages of one of them.
        run: PageRun,
    },
    /// The range has more pages than there are numbers left for.
    #[error("{run:?} ends beyond the last possible page, 16 TiB")]
    TooHigh {
        /// The pages.
        run: PageRun,
    },
    /// The range is not whole pages of this process.
    #[error("{run:?} is at address {address:#x}, where {} pages of 4096 bytes cannot start", run.count)]
    Unaligned {
        /// The pages.
        run: PageRun,
        /// Where they are.
        address: usize,
    },
    /// The memory is locked, and the kernel does not move locked pages.
    #[error(
        "{run:?} is locked in memory (mlock, mlockall), and locked pages cannot be moved; unlock it first"
    )]
    Locked {
        /// The pages.
        run: PageRun,
    },
    /// All that this process maps is locked.
    #[error(
        "this process locks all memory that it maps (mlockall with MCL_FUTURE), and locked pages cannot be moved; \
         call munlockall first"
    )]
    AllLocked,
    /// This process has almost as many mappings as the kernel allows.
    #[error(
        "this process has {used} mappings, and a region needs room for {needed} more before it reaches vm.max_map_count \
         ({limit}); raise that, or manage fewer guests in one process"
    )]
    NoMappings {
        /// Mappings that there are.
        used: u64,
        /// Mappings that a region needs to start.
        needed: u64,
        /// Mappings that the kernel allows.
        limit: u64,
    },
    /// Another userfaultfd watches the memory.
    #[error("{run:?} is registered with another userfaultfd; unregister it there first")]
    Watched {
        /// The pages.
        run: PageRun,
    },
    /// Huge blocks were asked for, but the range does not start at the same place in a 2 MiB block as its guest pages.
    #[error("{run:?} lies differently in 2 MiB blocks than its addresses do, so it cannot have huge blocks")]
    Misaligned {
        /// The pages.
        run: PageRun,
    },
    /// The operating system refused something else.
    #[error("{what} failed")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        #[source]
        source: std::io::Error,
    },
}

/// Ends the process: going on would lose a page or show a guest wrong bytes.
///
/// It ends whatever standard error is. What cannot be written is left out, and a full pipe is not waited for.
pub(crate) fn fatal(what: std::fmt::Arguments<'_>) -> ! {
    // A logger may have a reason on its way.
    log::logger().flush();
    let line = format!("page-share: {what}; the process ends, because going on would corrupt its guest\n");
    let stderr = std::io::stderr();
    let mut ends = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut ends, Some(&Timespec::default())).is_ok_and(|count| count > 0) {
        let _ = rustix::io::write(&stderr, line.as_bytes());
    }
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    const ORDER: &str = "PAGE_SHARE_FATAL_TEST";

    /// Not a test of its own: what children do.
    #[test]
    fn in_a_child() {
        if std::env::var_os(ORDER).is_some() {
            fatal(format_args!("a test"));
        }
    }

    #[test]
    fn a_fatal_error_ends_the_process_whatever_standard_error_is() {
        let (_unread, full) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&full, true).unwrap();
        while rustix::io::write(&full, &[0; 4096]).is_ok() {}
        rustix::io::ioctl_fionbio(&full, false).unwrap();
        let disk = File::options().write(true).open("/dev/full").unwrap();
        for stderr in [Stdio::from(full), Stdio::from(disk)] {
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "region::error::tests::in_a_child", "--nocapture"])
                .env(ORDER, "")
                .stdout(Stdio::null())
                .stderr(stderr)
                .status()
                .unwrap();
            assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
        }
    }
}
