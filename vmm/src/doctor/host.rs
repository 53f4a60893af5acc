//! What the host's kernel offers besides KVM.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use super::finding::Finding;
use super::userfault;

/// UFFDIO_MOVE came with 6.8; its data-losing races were fixed in these stable lines and in all from 6.16 on.
const MOVE_FIXED: &[(u32, u32, u32)] = &[(6, 12, 37), (6, 15, 6)];

/// VMAs that a guest of some GiB with scattered shared pages wants to have.
const MAPS_WANTED: u64 = 262_144;

const MIB: u64 = 1 << 20;

pub(super) fn kernel() -> Finding {
    let release = text("/proc/sys/kernel/osrelease");
    match version(&release) {
        Some(version) if move_is_sound(version) => Finding::good("kernel", release),
        Some(version) if version >= (6, 8, 0) => Finding::advice(
            "kernel",
            release,
            "UFFDIO_MOVE lost data in races before 6.12.37, 6.15.6 and 6.16: upgrade the kernel unless your \
             distribution has the fixes; until then guests run only with --manager none, outside every budget",
        ),
        _ => Finding::advice(
            "kernel",
            release,
            "UFFDIO_MOVE needs Linux 6.12.37, 6.15.6, 6.16 or later: guests run only with --manager none, outside every budget",
        ),
    }
}

pub(super) fn userfaultfd() -> Finding {
    const NAME: &str = "userfaultfd";
    let features = match userfault::features() {
        Ok(features) => features,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Finding::problem(
                NAME,
                "this user may not handle the kernel's faults",
                "run as root, or as root once: `chmod 666 /dev/userfaultfd` or `sysctl vm.unprivileged_userfaultfd=1`; \
                 without it guests run only with --manager none, outside every budget",
            );
        }
        Err(error) => {
            return Finding::problem(
                NAME,
                error.to_string(),
                "the kernel needs CONFIG_USERFAULTFD=y; without it guests run only with --manager none, outside every budget",
            );
        }
    };
    let has = |bit: &u32| features & (1 << bit) != 0;
    let names = |wanted: bool| -> Vec<&str> {
        let part = userfault::NEEDED.iter().filter(|(_, bit)| has(bit) == wanted);
        part.map(|(name, _)| *name).collect()
    };
    let missing = names(false);
    if missing.is_empty() {
        return Finding::good(NAME, names(true).join(", "));
    }
    Finding::advice(
        NAME,
        format!("this kernel lacks {}", missing.join(", ")),
        "use Linux 6.12 or later; until then guests run only with --manager none, outside every budget",
    )
}

pub(super) fn max_map_count() -> Finding {
    const NAME: &str = "vm.max_map_count";
    let count: u64 = text("/proc/sys/vm/max_map_count").parse().unwrap_or(0);
    if count >= MAPS_WANTED {
        return Finding::good(NAME, count.to_string());
    }
    Finding::advice(
        NAME,
        count.to_string(),
        format!(
            "sharing stops cleanly short of this many mappings per guest: `sysctl vm.max_map_count={MAPS_WANTED}` for \
             guests of several GiB"
        ),
    )
}

pub(super) fn tun() -> Finding {
    const NAME: &str = "tun";
    match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::good(NAME, "/dev/net/tun opens"),
        Err(error) if error.kind() == ErrorKind::NotFound => Finding::advice(
            NAME,
            "there is no /dev/net/tun",
            "`modprobe tun` for guests with a network; without it leave out --net",
        ),
        Err(error) => Finding::advice(
            NAME,
            format!("/dev/net/tun: {error}"),
            "run as root, or have an administrator make a tap for you (`ip tuntap add mode tap user $USER`)",
        ),
    }
}

pub(super) fn ksm() -> Finding {
    const NAME: &str = "ksm";
    match text("/sys/kernel/mm/ksm/run").as_str() {
        "0" => Finding::good(NAME, "off"),
        "" => Finding::good(NAME, "not in this kernel"),
        run => Finding::advice(
            NAME,
            format!("run={run}"),
            "guest memory does not opt in to it, so it is only in the way: `echo 0 >/sys/kernel/mm/ksm/run`, unless \
             other programs want it",
        ),
    }
}

pub(super) fn overcommit() -> Finding {
    const NAME: &str = "vm.overcommit_memory";
    match text("/proc/sys/vm/overcommit_memory").as_str() {
        "2" => Finding::problem(
            NAME,
            "2, every mapping needs its full size in reserve",
            "`sysctl vm.overcommit_memory=0`: guests are configured larger than what they use",
        ),
        mode => Finding::good(NAME, mode),
    }
}

pub(super) fn memory() -> Finding {
    const NAME: &str = "memory";
    let info = text("/proc/meminfo");
    let mib = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib / 1024)
    };
    let total = mib("MemTotal:").unwrap_or(0);
    let free = mib("MemAvailable:").unwrap_or(0);
    let found = format!("{free} of {total} MiB available");
    if free < 512 {
        return Finding::advice(
            NAME,
            found,
            "a Debian guest wants 256 MiB: end something else first",
        );
    }
    Finding::good(NAME, found)
}

/// Room in the directory that images are cached in, or the nearest parent that exists.
pub(super) fn room(cache: &Path) -> Option<u64> {
    let exists = cache.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(exists).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize) / MIB)
}

/// Names of the loaded modules that make /dev/kvm, as in "kvm_amd".
pub(super) fn kvm_modules() -> Vec<String> {
    let Ok(modules) = fs::read_dir("/sys/module") else {
        return Vec::new();
    };
    let mut names: Vec<_> = modules
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("kvm_"))
        .collect();
    names.sort();
    names
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// "6.12.95+deb12-amd64" is (6, 12, 95); a missing third number is 0.
fn version(release: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|digits| digits.parse().ok());
    let (major, minor) = (numbers.next()??, numbers.next()??);
    Some((major, minor, numbers.next().flatten().unwrap_or(0)))
}

fn move_is_sound(version: (u32, u32, u32)) -> bool {
    let (major, minor, patch) = version;
    version >= (6, 16, 0)
        || MOVE_FIXED
            .iter()
            .any(|&(m, n, p)| (major, minor) == (m, n) && patch >= p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_write_them() {
        assert_eq!(version("6.12.95+deb12-amd64"), Some((6, 12, 95)));
        assert_eq!(version("6.18-rc3"), Some((6, 18, 0)));
        assert_eq!(version("6.1.0-56-cloud-amd64"), Some((6, 1, 0)));
        assert_eq!(version("nonsense"), None);
    }

    #[test]
    fn kernels_before_the_fixes_are_not_sound() {
        assert!(!move_is_sound((6, 12, 36)));
        assert!(move_is_sound((6, 12, 37)));
        assert!(!move_is_sound((6, 14, 99)));
        assert!(!move_is_sound((6, 15, 5)));
        assert!(move_is_sound((6, 16, 0)));
        assert!(move_is_sound((7, 0, 0)));
    }
}
