//! Groups of managers that are gone in which guests still live.
//!
//! A manager that was killed leaves its guests braked at what it allowed them last. The next one may hand out more, and
//! may have no group of its own, or one elsewhere: then no other clears those away.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{PREFIX, clear_away_the_dead, group_in, mount};

/// Lets processes `pids` go from the groups of managers that are gone: nothing brakes them there any more.
pub fn let_go(pids: &[u32]) {
    let Some(mount) = mount() else { return };
    let texts = pids
        .iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).ok());
    for parent in parents(texts, &mount) {
        clear_away_the_dead(&parent);
    }
}

/// The groups below which managers have made those that are named in `texts`.
fn parents(texts: impl Iterator<Item = String>, mount: &Path) -> BTreeSet<PathBuf> {
    let parent = |text: String| {
        let group = group_in(&text, mount)?;
        let below = group.strip_prefix(mount).ok()?;
        let ours = |group: &&Path| {
            let name = group.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(PREFIX))
        };
        let ours = below.ancestors().find(ours)?;
        Some(mount.join(ours.parent()?))
    };
    texts.filter_map(parent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use levy_protocol::run_dir::HeldDir;

    #[test]
    fn survivors_of_a_manager_that_is_gone_are_braked_no_longer_wherever_its_group_was() {
        let mount = tempfile::tempdir().unwrap();
        let fleet = mount.path().join("fleet");
        fs::create_dir(&fleet).unwrap();
        // Above the highest process number there can be.
        let dead = fleet.join("levy-4194305/guest-1");
        let living = HeldDir::create(&fleet, PREFIX, 0o755).unwrap();
        let held = living.path().join("guest-2");
        for group in [&dead, &held] {
            fs::create_dir_all(group).unwrap();
            fs::write(group.join("memory.high"), "1048576").unwrap();
            fs::write(group.parent().unwrap().join("memory.high"), "2097152").unwrap();
        }
        let path = |group: &Path| {
            let below = group.strip_prefix(mount.path()).unwrap();
            format!("1:name=x:/\n0::/{}\n", below.display())
        };
        let texts = [path(&dead), path(&held), path(mount.path()), String::new()];
        let parents = parents(texts.into_iter(), mount.path());
        assert_eq!(parents.iter().collect::<Vec<_>>(), [&fleet]);
        parents.iter().for_each(|parent| clear_away_the_dead(parent));
        let high = |group: &Path| fs::read_to_string(group.join("memory.high")).unwrap();
        assert_eq!(
            (high(&dead), high(dead.parent().unwrap())),
            ("max".into(), "max".into())
        );
        assert_eq!(high(&held), "1048576", "its manager lives");
    }
}
