//! What comes from outside: licences, doubles, withdrawn and unwanted crates.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::licence;
use crate::metadata::{Metadata, Package};

/// The registry that everything must come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The part of `deny.toml` that is checked without cargo-deny too.
#[derive(Deserialize)]
struct Rules {
    licenses: Licences,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

/// A crate that is unwanted for some reason, or of which one version is enough.
#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: Option<String>,
}

/// Versions withdrawn by their authors.
const WITHDRAWN: &[(&str, &[&str])] = &[
    ("crossbeam-channel", &["0.5.12", "0.5.13", "0.5.14"]),
    ("virtio-queue", &["0.9.1"]),
    ("vmm-sys-util", &["0.1.0", "0.12.0"]),
];

pub(super) fn complaints(metadata: &Metadata) -> Result<Vec<String>> {
    let path = metadata.root().join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let rules: Rules =
        toml::from_str(&text).with_context(|| format!("{} is of another kind", path.display()))?;
    let mut complaints: Vec<_> = metadata
        .others()
        .flat_map(|package| of(package, &rules))
        .collect();
    let mut versions = BTreeMap::<&str, Vec<&str>>::new();
    for package in metadata.others() {
        versions.entry(&package.name).or_default().push(&package.version);
    }
    for ban in rules.bans.deny.iter().filter(|ban| ban.reason.is_none()) {
        let name = ban.name.as_str();
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
    Ok(complaints)
}

fn of(package: &Package, rules: &Rules) -> Vec<String> {
    let (name, version) = (package.name.as_str(), package.version.as_str());
    let mut complaints = Vec::new();
    if package.source.as_deref() != Some(REGISTRY) {
        complaints.push(format!("{name} {version} does not come from the crate registry"));
    }
    match &package.license {
        Some(expression) if licence::is_allowed(expression, &rules.licenses.allow) => {}
        Some(expression) => complaints.push(format!("{name} {version} is under {expression}")),
        None => complaints.push(format!("{name} {version} names no licence")),
    }
    let ban = rules.bans.deny.iter().find(|ban| ban.name == name);
    if let Some(why) = ban.and_then(|ban| ban.reason.as_ref()) {
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
