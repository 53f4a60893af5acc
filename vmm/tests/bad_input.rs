//! Everything a user can get wrong, through the real binary: one clear message, a status that is not zero, and nothing
//! left behind.

mod bzimage;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs `levy vmm` with `args` in `dir`.
fn vmm(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_levy"))
        .arg("vmm")
        .args(args)
        .current_dir(dir)
        .env("TMPDIR", dir)
        .output()
        .unwrap()
}

/// The files in `dir`, by name.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A file that passes for a kernel until it runs.
fn kernel(dir: &Path) -> PathBuf {
    let path = dir.join("bzImage");
    std::fs::write(&path, bzimage::bzimage(&[])).unwrap();
    path
}

/// Runs with `args` and expects `status`, each of `words` in the message, and no file that was not there before.
fn refused(dir: &Path, args: &[&str], status: i32, words: &[&str]) {
    let before = names(dir);
    let output = vmm(dir, args);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?}: {word:?} is not in {text}");
    }
    assert_eq!(names(dir), before, "{args:?} left something behind");
}

fn has_kvm() -> bool {
    std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

/// Whether there is a KVM; says that the test is skipped where there is none.
fn kvm_or_skip() -> bool {
    let has = has_kvm();
    if !has {
        eprintln!("skipped: no usable /dev/kvm on this machine");
    }
    has
}

#[test]
fn options_are_refused_with_status_2() {
    let dir = tempfile::tempdir().unwrap();
    let long = "n".repeat(65);
    let cases: &[(&[&str], &[&str])] = &[
        (
            &["--memory", "siez=1G"],
            &["unknown key \"siez\"", "did you mean size?"],
        ),
        (&["--memory", "size=lots"], &["size=lots", "as in 512M"]),
        (&["--memory", "size=0"], &["positive number of whole MiB"]),
        (&["--memory", "size=16T"], &["less than 16 TiB"]),
        (&["--memory", "size=16777215M"], &["16776191M at most"]),
        (&["--memory", "size=99999999999T"], &["too large"]),
        (
            &["--name", "a b"],
            &["\"a b\" is not a guest name", "1 to 64 of the characters"],
        ),
        (
            &["--name", ""],
            &["\"\" is not a guest name", "1 to 64 of the characters"],
        ),
        (
            &["--name", &long],
            &["is not a guest name", "1 to 64 of the characters"],
        ),
        (&["--group", "name=a b"], &["\"a b\" is not a group name"]),
        (&["--sharing", "domain=a b"], &["\"a b\" is not a domain name"]),
        (&["--cpus", "many"], &["count=many"]),
        (
            &["--disk", "path=a,readonly=perhaps"],
            &["readonly=perhaps", "on or off"],
        ),
        (&["--disk", "overlay=on"], &["path= is missing"]),
        (&["--net", "tap=t,mac=zz"], &["mac=zz"]),
        (
            &["--balloon", "size=1M,deflate=on"],
            &["did you mean deflate_on_oom?"],
        ),
        (&["--serial", "com1"], &["stdio or null"]),
        (&["--deadline", "soon"], &["not a duration"]),
        (&["--frobnicate"], &["--frobnicate"]),
    ];
    for (args, words) in cases {
        refused(dir.path(), args, 2, words);
    }
}

#[test]
fn limits_of_memory_are_named() {
    if !kvm_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    kernel(dir.path());
    // From far too little to what the guest alone would fit into: KiB.
    let data = [30 << 10, 400 << 10, 512 << 10, 560 << 10].map(|limit| ("-d", limit));
    for (limit, kib) in data.into_iter().chain([("-v", 400 << 10)]) {
        let output = Command::new("sh")
            .args(["-c", &format!("ulimit {limit} {kib}; exec \"$@\""), "sh"])
            .args([env!("CARGO_BIN_EXE_levy"), "vmm", "--kernel", "bzImage"])
            .args(["--memory", "512M", "--serial", "null", "--kvm-checked"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{limit} {kib}: {text}");
        assert!(
            text.contains(&format!("`ulimit {limit}`")),
            "{limit} {kib}: {text}"
        );
    }
}

#[test]
fn the_limit_of_open_files_is_named_wherever_it_is_met() {
    if !kvm_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    kernel(dir.path());
    let mut met = 0;
    for files in 8..48 {
        let output = Command::new("sh")
            .args(["-c", &format!("ulimit -n {files}; exec \"$@\""), "sh"])
            .args([
                env!("CARGO_BIN_EXE_levy"),
                "vmm",
                "--kernel",
                "bzImage",
                "--cpus",
                "2",
            ])
            .args([
                "--memory",
                "64M",
                "--serial",
                "null",
                "--kvm-checked",
                "--deadline",
                "100ms",
            ])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        if text.contains("open files") {
            met += 1;
            assert!(text.contains("`ulimit -n`"), "{files}: {text}");
        }
    }
    assert!(met > 10, "{met} starts met the limit");
}

#[test]
fn what_the_host_cannot_give_is_refused_with_status_1() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    kernel(dir);
    std::fs::write(dir.join("disk.img"), [0; 4096]).unwrap();
    refused(dir, &[], 1, &["--kernel is missing", "levy run"]);
    // With --events json the message is an event on standard output.
    let output = vmm(dir, &["--kernel", "bzImage", "--events", "json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("needs standard output for itself"));
    if !has_kvm() {
        eprintln!("skipped in part: no usable /dev/kvm on this machine");
        return;
    }
    refused(
        dir,
        &["--kernel", "none"],
        1,
        &["kernel none: cannot read it", "--kernel"],
    );
    let cases: &[(&str, &str, &[&str])] = &[
        ("--initrd", "none", &["initrd none: cannot read it", "--initrd"]),
        ("--cpus", "0", &["cpus=0: a guest on this host has 1 to "]),
        ("--cpus", "300", &["cpus=300: a guest on this host has 1 to "]),
        ("--memory", "4M", &["size=4M is below", "--memory size="]),
        ("--memory", "8T", &["size=8388608M is above this host's"]),
        (
            "--disk",
            "none.img",
            &["disk none.img: cannot open it for writing"],
        ),
        ("--disk", "path=/dev/null", &["neither a file nor a block device"]),
        (
            "--net",
            "levy-none",
            &["tap levy-none: no such interface", "create=on"],
        ),
        ("--agent", "no/such/dir", &["no/such/dir: cannot create a socket"]),
        (
            "--serial",
            "file=no/such/dir",
            &["cannot write the console to no/such/dir"],
        ),
    ];
    for (option, value, words) in cases {
        refused(dir, &["--kernel", "bzImage", option, value], 1, words);
    }
}

/// Whatever a path is mistyped for: what is there stays as it is, also where the start fails for another reason.
#[test]
fn files_in_the_way_keep_their_bytes() {
    if !has_kvm() {
        println!("skipped: there is no KVM here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    kernel(dir);
    std::fs::write(dir.join("file"), [7; 4096]).unwrap();
    std::fs::write(dir.join("disk.img"), [8; 4096]).unwrap();
    std::fs::hard_link(dir.join("bzImage"), dir.join("link")).unwrap();
    std::os::unix::fs::symlink("disk.img", dir.join("symlink")).unwrap();
    let bytes = || ["file", "disk.img", "bzImage"].map(|name| std::fs::read(dir.join(name)).unwrap());
    let before = bytes();
    let base = ["--kernel", "bzImage", "--memory", "64M", "--kvm-checked"];
    let base = [&base[..], &["--disk", "path=disk.img,readonly=on"]].concat();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--agent", "file"], &["file: a file that is not a socket"]),
        (&["--control", "file"], &["file: a file that is not a socket"]),
        (&["--agent", "file", "--kernel", "file"], &[]),
        (
            &["--serial", "file=bzImage"],
            &["the guest's kernel", "--serial file="],
        ),
        (&["--serial", "file=link"], &["the guest's kernel"]),
        (&["--serial", "file=disk.img"], &["the guest's disk"]),
        (&["--serial", "file=symlink"], &["the guest's disk"]),
    ];
    for (args, words) in cases {
        let mut base = base.clone();
        if args.contains(&"--kernel") {
            base.drain(..2);
        }
        refused(dir, &[&base, *args].concat(), 1, words);
        assert_eq!(bytes(), before, "{args:?}");
    }
}

#[test]
fn a_disk_in_use_is_refused() {
    if !kvm_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    kernel(dir.path());
    let image = dir.path().join("disk.img");
    std::fs::write(&image, [0; 4096]).unwrap();
    let user = std::fs::File::open(&image).unwrap();
    user.lock_shared().unwrap();
    let args = ["--kernel", "bzImage", "--disk", "disk.img"];
    refused(
        dir.path(),
        &args,
        1,
        &["disk disk.img: in use by another guest", "overlay=on"],
    );
}

#[test]
fn bad_kernels_are_refused() {
    if !kvm_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = kernel(dir.path());
    let good = std::fs::read(&path).unwrap();
    let refuse = |bytes: &[u8], words: &[&str]| {
        std::fs::write(&path, bytes).unwrap();
        refused(dir.path(), &["--kernel", "bzImage"], 1, words);
    };
    refuse(&good[..2000], &["truncated", "2000"]);
    let mut i386 = good.clone();
    i386[0x236] = 0;
    refuse(&i386, &["32-bit kernel", "amd64"]);
    refuse(b"#!/bin/sh\n", &["not a bzImage", "not a vmlinux"]);
    refuse(b"\x7FELF\x02\x01", &["truncated", "64 bytes, it has 6"]);
    // This test's own program is an ELF file for amd64, and no kernel.
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    refuse(&program, &["not a vmlinux", "type 3", "has 2"]);
    // Nothing ever writes to it.
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), 0o600.into()).unwrap();
    refused(
        dir.path(),
        &["--kernel", "fifo"],
        1,
        &["fifo", "not a regular file"],
    );
    std::fs::write(&path, good).unwrap();
    let fifo = ["--kernel", "bzImage", "--initrd", "fifo"];
    refused(dir.path(), &fifo, 1, &["fifo", "not a regular file"]);
}

/// On a KVM that emulates in software a kernel must not be tried: it would die in the middle of its boot.
#[test]
fn a_kvm_that_cannot_run_kernels_is_named_with_the_cure() {
    if !kvm_or_skip() {
        return;
    }
    if levy::doctor::Machine::probe().runs_kernels() {
        eprintln!("skipped: impossible where KVM runs kernels, as it does here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    kernel(dir.path());
    let args = [
        "--kernel",
        "bzImage",
        "--agent",
        "a",
        "--control",
        "c",
        "--serial",
        "null",
    ];
    refused(dir.path(), &args, 1, &["no stock kernel", "cargo xtask nested"]);
    let output = Command::new(env!("CARGO_BIN_EXE_levy"))
        .args(["run", "--count", "2"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cargo xtask nested"));
}

/// A guest that never becomes ready, with a kernel of one instruction: it ends by its deadline, and says where it was.
#[test]
fn a_guest_that_hangs_is_told_apart_and_cleaned_up() {
    if !kvm_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = kernel(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    // At the 64-bit entry point: jmp to itself.
    bytes[3 * 512 + 0x200..3 * 512 + 0x202].copy_from_slice(&[0xEB, 0xFE]);
    std::fs::write(&path, bytes).unwrap();
    let args = [
        "--kernel",
        "bzImage",
        "--memory",
        "64M",
        "--kvm-checked",
        "--deadline",
        "500ms",
        "--agent",
        "a",
        "--control",
        "c",
        "--serial",
        "null",
    ];
    refused(
        dir.path(),
        &args,
        5,
        &[
            "the guest hangs: not ready within 500ms",
            "vCPU 0: rip 0x100200 cr0 0x80",
        ],
    );
}

/// Kernels of a few instructions that end in every way a guest can end.
#[test]
fn every_end_has_its_own_status() {
    if !kvm_or_skip() {
        return;
    }
    // mov al, VALUE; mov dx, PORT; out dx, al; hlt
    let out = |port: u16, value: u8| {
        let [low, high] = port.to_le_bytes();
        vec![0xB0, value, 0x66, 0xBA, low, high, 0xEE, 0xF4]
    };
    for (code, status, words) in [
        (out(0x600, 0x34), 0, "switched itself off"),
        (out(0x604, 1), 3, "asked for a restart"),
        (out(0x64, 0xFE), 3, "asked for a restart"),
        (
            [out(0x505, 1)[..7].to_vec(), out(0x604, 1)].concat(),
            4,
            "kernel panicked",
        ),
        (vec![0x0F, 0x0B], 6, "crashed: vCPU 0: triple fault"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = kernel(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3 * 512 + 0x200..3 * 512 + 0x200 + code.len()].copy_from_slice(&code);
        std::fs::write(&path, bytes).unwrap();
        let args = [
            "--kernel",
            "bzImage",
            "--memory",
            "64M",
            "--kvm-checked",
            "--deadline",
            "20s",
            "--serial",
            "null",
        ];
        refused(dir.path(), &args, status, &[words]);
    }
}
