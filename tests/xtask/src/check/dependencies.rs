//! What comes from outside: licences, doubles, withdrawn and unwanted crates.

use std::collections::BTreeMap;

use super::licence;
use crate::metadata::{Metadata, Package};

/// The registry that everything must come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Crates whose types meet at our interfaces: two versions of one would not fit each other.
const ONCE: &[&str] = &[
    "acpi_tables",
    "kvm-bindings",
    "kvm-ioctls",
    "virtio-bindings",
    "virtio-queue",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];

/// Crates that we do not want, and why.
const UNWANTED: &[(&str, &str)] = &[
    ("bindgen", "it needs libclang at build time"),
    ("openssl-sys", "it needs a C library; nothing here speaks TLS"),
    ("userfaultfd", "it needs libclang and lacks MOVE and WP_ASYNC"),
    ("vm-device", "it is abandoned"),
    ("vm-superio-ser", "it pins an old vm-superio"),
];

/// Versions withdrawn by their authors.
const WITHDRAWN: &[(&str, &[&str])] = &[
    ("crossbeam-channel", &["0.5.12", "0.5.13", "0.5.14"]),
    ("virtio-queue", &["0.9.1"]),
    ("vmm-sys-util", &["0.1.0", "0.12.0"]),
];

pub(super) fn complaints(metadata: &Metadata) -> Vec<String> {
    let mut complaints: Vec<_> = metadata.others().flat_map(of).collect();
    let mut versions = BTreeMap::<&str, Vec<&str>>::new();
    for package in metadata.others() {
        versions.entry(&package.name).or_default().push(&package.version);
    }
    for name in ONCE {
        if let Some(found) = versions.get(name).filter(|found| found.len() > 1) {
            complaints.push(format!("{name} is there more than once: {}", found.join(", ")));
        }
    }
    for package in metadata.ours() {
        for dependency in &package.dependencies {
            if dependency.source.is_some() && dependency.req == "*" {
                complaints.push(format!(
                    "{} asks for any version of {}",
                    package.name, dependency.name
                ));
            }
        }
    }
    complaints
}

fn of(package: &Package) -> Vec<String> {
    let (name, version) = (package.name.as_str(), package.version.as_str());
    let mut complaints = Vec::new();
    if package.source.as_deref() != Some(REGISTRY) {
        complaints.push(format!("{name} {version} does not come from the crate registry"));
    }
    match &package.license {
        Some(expression) if licence::is_allowed(expression) => {}
        Some(expression) => complaints.push(format!("{name} {version} is under {expression}")),
        None => complaints.push(format!("{name} {version} names no licence")),
    }
    if let Some((_, why)) = UNWANTED.iter().find(|(unwanted, _)| *unwanted == name) {
        complaints.push(format!("{name} {version} is unwanted: {why}"));
    }
    if WITHDRAWN
        .iter()
        .any(|(withdrawn, versions)| *withdrawn == name && versions.contains(&version))
    {
        complaints.push(format!("{name} {version} was withdrawn by its authors"));
    }
    complaints
}
