//! Builds the guest agent as a static binary, which the library then embeds: a `levy` that was installed by cargo can
//! make guest images by itself.
//!
//! The nested cargo has a target directory of its own inside `OUT_DIR`: sharing the outer one would wait for its lock
//! forever.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Static, at a fixed address (it has no attacker inside its own guest) and in the same bytes from any directory.
const FLAGS: &[&str] = &["-Ctarget-feature=+crt-static", "-Crelocation-model=static"];

/// Set by the outer cargo or by clippy; they would change what the nested one does.
const FOREIGN: &[&str] = &[
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "CLIPPY_ARGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_MAKEFLAGS",
    "MAKEFLAGS",
];

fn main() {
    for path in ["agent/src", "agent/Cargo.toml", "../Cargo.lock", "build.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let var = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let (out, target) = (var("OUT_DIR"), var("TARGET"));
    let build_dir = Path::new(&out).join("agent");
    let mut cargo = Command::new(var("CARGO"));
    cargo
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "levy-agent",
            "--bin",
            "levy-agent",
        ])
        .args(["--target", &target, "--target-dir"])
        .arg(&build_dir)
        .current_dir(var("CARGO_MANIFEST_DIR"));
    for name in FOREIGN {
        cargo.env_remove(name);
    }
    let remap = format!("--remap-path-prefix={}=.", var("CARGO_MANIFEST_DIR"));
    let flags: Vec<&str> = FLAGS.iter().copied().chain([remap.as_str()]).collect();
    cargo
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_PROFILE_RELEASE_DEBUG", "none")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort");
    let status = cargo.status().expect("cargo starts");
    assert!(status.success(), "building the guest agent failed: {status}");
    let built = build_dir.join(target).join("release/levy-agent");
    fs::copy(&built, Path::new(&out).join("levy-agent")).expect("the agent can be copied");
}
