//! Who may depend on whom.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::metadata::{Metadata, Package};

/// What a package may use besides its own code and, in tests, the crates of [`FOR_TESTS`].
enum Layer {
    /// Nothing at all: pure policy.
    Pure,
    /// These of our crates, and outside crates.
    Uses(&'static [&'static str]),
    /// Everything: tests, benches, tasks.
    Top,
}

const LAYERS: &[(&str, Layer)] = &[
    ("levy-allocator", Layer::Pure),
    ("levy-page-share", Layer::Uses(&[])),
    ("levy-balloon-driver", Layer::Uses(&[])),
    ("levy-agent", Layer::Uses(&[])),
    ("guest-images", Layer::Uses(&["levy-agent"])),
    ("levy-protocol", Layer::Uses(&[])),
    (
        "levy-manager",
        Layer::Uses(&["levy-allocator", "levy-protocol", "levy-page-share"]),
    ),
    ("levy-member", Layer::Uses(&["levy-protocol", "levy-page-share"])),
    (
        "levy-machine",
        Layer::Uses(&[
            "levy-allocator",
            "levy-balloon-driver",
            "levy-agent",
            "levy-member",
            "levy-protocol",
            "levy-page-share",
        ]),
    ),
    (
        "levy-launcher",
        Layer::Uses(&[
            "levy-allocator",
            "guest-images",
            "levy-agent",
            "levy-machine",
            "levy-manager",
            "levy-protocol",
        ]),
    ),
    (
        "levy-bench",
        Layer::Uses(&[
            "levy-allocator",
            "guest-images",
            "levy-agent",
            "levy-launcher",
            "levy-machine",
            "levy-manager",
            "levy-member",
            "levy-protocol",
        ]),
    ),
    (
        "levy",
        Layer::Uses(&[
            "levy-allocator",
            "guest-images",
            "levy-agent",
            "levy-bench",
            "levy-launcher",
            "levy-machine",
            "levy-manager",
            "levy-member",
            "levy-protocol",
        ]),
    ),
    ("ring3", Layer::Top),
    ("bench", Layer::Top),
    ("chaos", Layer::Top),
    ("foreign-vmm", Layer::Top),
    ("fuzz", Layer::Top),
    ("levy-tests", Layer::Top),
    ("simulated", Layer::Top),
    ("xtask", Layer::Top),
];

/// What any of our crates may use in its tests.
const FOR_TESTS: &[&str] = &["ring3", "levy-page-share"];

/// What a package must never be built with, however far down: the boundary of trust, and what a library promises.
const NEVER: &[(&str, &[&str])] = &[
    (
        "levy-manager",
        &[
            "kvm-bindings",
            "kvm-ioctls",
            "levy-machine",
            "levy-member",
            "virtio-queue",
            "vm-memory",
            "vm-superio",
        ],
    ),
    (
        "levy-member",
        &["kvm-bindings", "kvm-ioctls", "levy-machine", "levy-manager"],
    ),
    (
        "levy-machine",
        &["levy-manager", "levy-launcher", "axum", "plotters"],
    ),
    // What it shows is that the library for members is enough.
    ("foreign-vmm", &["levy-allocator", "levy-machine", "levy-manager"]),
];

/// Crates that only one package of ours may ask for.
const ONLY: &[(&str, &str)] = &[("plotters", "levy-bench")];

pub(super) fn complaints(metadata: &Metadata) -> Result<Vec<String>> {
    let mut complaints: Vec<String> = metadata.ours().flat_map(of).collect();
    for (package, never) in NEVER {
        complaints.extend(forbidden(package, never, &built_with(package)?));
    }
    Ok(complaints)
}

/// The packages that `package` is built with, as cargo resolves them for it alone.
fn built_with(package: &str) -> Result<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal,build", "--prefix", "none"])
        .args(["--format", "{p}", "--package", package])
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Those of `never` that are in cargo's list.
fn forbidden(package: &str, never: &[&str], list: &str) -> Vec<String> {
    let found = |name: &&&str| list.lines().any(|line| line.split(' ').next() == Some(**name));
    let complain =
        |name| format!("{package} must never be built with {name} (see `cargo tree --package {package}`)");
    never.iter().filter(found).map(complain).collect()
}

fn of(package: &Package) -> Vec<String> {
    let name = &package.name;
    let Some((_, layer)) = LAYERS.iter().find(|(known, _)| known == name) else {
        return vec![format!(
            "{name} is in no layer: add it to the table in check/layers.rs"
        )];
    };
    let mut complaints = Vec::new();
    for dependency in &package.dependencies {
        let in_tests = dependency.kind.as_deref() == Some("dev");
        let used = dependency.name.as_str();
        let is_ours = dependency.source.is_none();
        let fine = match layer {
            Layer::Top => true,
            // Itself: that switches its optional features on.
            _ if in_tests && (!is_ours || FOR_TESTS.contains(&used) || used == name) => true,
            Layer::Pure => false,
            Layer::Uses(allowed) => !is_ours || allowed.contains(&used),
        };
        let reserved = ONLY.iter().find(|(only, whose)| *only == used && whose != name);
        let reserved = reserved.is_some() && !in_tests && !matches!(layer, Layer::Top);
        if !fine || reserved {
            complaints.push(format!("{name} must not depend on {used}"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependency: &str) -> Package {
        let text = format!(
            r#"{{"id": "x", "name": "{name}", "version": "0.1.0", "license": null, "source": null,
                 "dependencies": [{dependency}]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn leaves_may_not_know_each_other() {
        let sideways = package(
            "levy-page-share",
            r#"{"name": "levy-allocator", "req": "*", "kind": null, "source": null}"#,
        );
        assert_eq!(
            of(&sideways),
            ["levy-page-share must not depend on levy-allocator"]
        );
        let upwards = package(
            "levy-balloon-driver",
            r#"{"name": "levy", "req": "*", "kind": "dev", "source": null}"#,
        );
        assert_eq!(of(&upwards), ["levy-balloon-driver must not depend on levy"]);
        let tests = package(
            "levy",
            r#"{"name": "levy-member", "req": "*", "kind": "dev", "source": null}"#,
        );
        assert_eq!(
            of(&tests),
            Vec::<String>::new(),
            "what a crate may use, its tests may"
        );
    }

    #[test]
    fn policy_is_pure_but_its_tests_are_free() {
        let registry = r#"{"name": "libc", "req": "^0.2", "kind": KIND, "source": "registry+x"}"#;
        let plain = package("levy-allocator", &registry.replace("KIND", "null"));
        assert_eq!(of(&plain), ["levy-allocator must not depend on libc"]);
        let tests = package("levy-allocator", &registry.replace("KIND", "\"dev\""));
        assert_eq!(of(&tests), Vec::<String>::new());
    }

    #[test]
    fn the_boundary_of_trust_holds_however_far_down() {
        let list = "levy-manager v0.1.0 (/x)\npage-share v0.1.0\nvm-memory v0.18.0\nvm-memory-extra v1\n";
        let found = forbidden("levy-manager", &["kvm-ioctls", "vm-memory"], list);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].contains("must never be built with vm-memory"),
            "{found:?}"
        );
        let plots = package(
            "levy-machine",
            r#"{"name": "plotters", "req": "^0.3", "kind": null, "source": "registry+x"}"#,
        );
        assert_eq!(of(&plots), ["levy-machine must not depend on plotters"]);
    }

    #[test]
    fn newcomers_must_take_a_place() {
        let text = of(&package("newcomer", "")).join("");
        assert!(text.contains("newcomer is in no layer"), "{text}");
    }
}
