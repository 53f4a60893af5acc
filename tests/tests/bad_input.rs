//! What users get wrong: each mistake gets one message with the value and the cure, and leaves nothing behind.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use levy_tests::{Lab, NOTHING, files_in};

/// Runs `levy vmm` with `args` in an empty directory; it must refuse, and the directory must still be empty.
fn refused(lab: &Lab, prefix: &[&str], args: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let levy = lab.levy().to_str().unwrap();
    let words: Vec<_> = prefix
        .iter()
        .copied()
        .chain([levy, "vmm"])
        .chain(args.iter().copied())
        .collect();
    let output: Output = Command::new("timeout")
        .args(["60"])
        .args(&words)
        .args(["--serial", "null", "--agent", "agent", "--control", "control"])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let status = output.status.code().unwrap_or(-1);
    assert!([1, 2].contains(&status), "{args:?}: status {status}: {message}");
    assert!(
        message.lines().count() <= 8,
        "{args:?}: more than one message: {message}"
    );
    assert_eq!(files_in(directory.path()), NOTHING, "{args:?}");
    message
}

/// The message to `args` must have all of `words` in it.
fn check(lab: &Lab, args: &[&str], words: &[&str]) {
    let message = refused(lab, &[], args);
    for word in words {
        assert!(
            message.contains(word),
            "{args:?} should be answered with {word:?}: {message}"
        );
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn files_that_are_not_there_or_not_what_they_should_be() {
    let Some(lab) = Lab::or_skip() else { return };
    let directory = tempfile::tempdir().unwrap();
    let kernel = text(&lab.boot().kernel());
    let bytes = fs::read(&kernel).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        text(&path)
    };
    let truncated = write("truncated", &bytes[..100_000]);
    let no_kernel = write("no-kernel", b"#!/bin/sh\n");
    // Offset 0x236 holds xloadflags; bit 0 says that there is a 64-bit entry.
    let mut old = bytes.clone();
    old[0x236] &= !1;
    let old = write("i386", &old);
    for (args, words) in [
        (["--kernel", "/no/such/kernel"], ["/no/such/kernel", "--kernel"]),
        (
            ["--kernel", truncated.as_str()],
            [truncated.as_str(), "truncated"],
        ),
        (["--kernel", no_kernel.as_str()], [no_kernel.as_str(), "bzImage"]),
        (["--kernel", old.as_str()], [old.as_str(), "amd64"]),
        (["--kernel", "/"], ["/", "kernel"]),
    ] {
        check(&lab, &args, &words);
    }
    check(
        &lab,
        &["--kernel", &kernel, "--initrd", "/no/such/initrd"],
        &["/no/such/initrd", "--initrd"],
    );
    check(
        &lab,
        &["--kernel", &kernel, "--disk", "path=/no/such/disk"],
        &["/no/such/disk"],
    );
}

#[test]
fn sizes_that_cannot_be() {
    let Some(lab) = Lab::or_skip() else { return };
    let kernel = text(&lab.boot().kernel());
    for (option, value, words) in [
        ("--memory", "size=16M", ["16", "--memory"]),
        ("--memory", "size=9000G", ["9000G", "memory"]),
        ("--memory", "size=none", ["none", "size"]),
        ("--cpus", "0", ["0", "cpu"]),
        ("--cpus", "300", ["300", "cpu"]),
        ("--memory", "sise=512M", ["sise", "size"]),
        ("--disk", "path=x,speed=high", ["speed", "latency"]),
        ("--net", "tap=nosuchtap0", ["nosuchtap0", "create=on"]),
    ] {
        let message = refused(&lab, &[], &["--kernel", &kernel, option, value]);
        for word in words {
            let found = message.to_lowercase().contains(&word.to_lowercase());
            // Sizes may be told in MiB.
            let in_mib = word == "9000G" && message.contains("9216000");
            assert!(
                found || in_mib,
                "{option} {value} should be answered with {word:?}: {message}"
            );
        }
    }
}

#[test]
fn a_disk_in_use_is_not_opened_twice() {
    let Some(lab) = Lab::or_skip() else { return };
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let option = format!("path={}", disk.display());
    let mut guest = lab.guest("owner").args(["--disk", &option]).start();
    guest.ready();
    let kernel = text(&lab.boot().kernel());
    check(
        &lab,
        &["--kernel", &kernel, "--disk", &option],
        &[&text(&disk), "use"],
    );
    assert_eq!(guest.power_off().status, 0);
}

#[test]
fn hosts_without_a_usable_kvm() {
    let Some(lab) = Lab::or_skip() else { return };
    if !rustix::process::geteuid().is_root() {
        println!("skipped: hiding /dev/kvm needs root");
        return;
    }
    let kernel = text(&lab.boot().kernel());
    let hidden = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec \"$@\"";
    let message = refused(
        &lab,
        &["unshare", "--mount", "sh", "-c", hidden, "sh"],
        &["--kernel", &kernel],
    );
    assert!(
        message.contains("/dev/kvm") && message.contains("load kvm_intel"),
        "{message}"
    );

    // Another user's files are no obstacle to a user without rights: they get copies of their own.
    let directory = tempfile::tempdir().unwrap();
    let (levy, kernel_copy) = (directory.path().join("levy"), directory.path().join("kernel"));
    fs::copy(lab.levy(), &levy).unwrap();
    fs::copy(&kernel, &kernel_copy).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), open).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&levy)
        .args(["vmm", "--serial", "null", "--kernel"])
        .arg(&kernel_copy)
        .current_dir("/")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && message.contains("permission"),
        "{message}"
    );
    assert!(message.contains("kvm"), "{message}");
}
