//! Who may depend on whom.

use super::metadata::{Metadata, Package};

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
    ("allocator", Layer::Pure),
    ("page-share", Layer::Uses(&[])),
    ("balloon-driver", Layer::Uses(&[])),
    ("levy-agent", Layer::Uses(&[])),
    ("guest-images", Layer::Uses(&["levy-agent"])),
    (
        "levy",
        Layer::Uses(&[
            "allocator",
            "page-share",
            "balloon-driver",
            "guest-images",
            "levy-agent",
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
const FOR_TESTS: &[&str] = &["ring3"];

pub(super) fn complaints(metadata: &Metadata) -> Vec<String> {
    metadata.ours().flat_map(of).collect()
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
            _ if in_tests => !is_ours || FOR_TESTS.contains(&used) || used == name,
            Layer::Pure => false,
            Layer::Uses(allowed) => !is_ours || allowed.contains(&used),
        };
        if !fine {
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
            "page-share",
            r#"{"name": "allocator", "req": "*", "kind": null, "source": null}"#,
        );
        assert_eq!(of(&sideways), ["page-share must not depend on allocator"]);
        let upwards = package(
            "balloon-driver",
            r#"{"name": "levy", "req": "*", "kind": "dev", "source": null}"#,
        );
        assert_eq!(of(&upwards), ["balloon-driver must not depend on levy"]);
    }

    #[test]
    fn policy_is_pure_but_its_tests_are_free() {
        let registry = r#"{"name": "libc", "req": "^0.2", "kind": KIND, "source": "registry+x"}"#;
        let plain = package("allocator", &registry.replace("KIND", "null"));
        assert_eq!(of(&plain), ["allocator must not depend on libc"]);
        let tests = package("allocator", &registry.replace("KIND", "\"dev\""));
        assert_eq!(of(&tests), Vec::<String>::new());
    }

    #[test]
    fn newcomers_must_take_a_place() {
        let text = of(&package("newcomer", "")).join("");
        assert!(text.contains("newcomer is in no layer"), "{text}");
    }
}
