//! Folders of one crate that need each other in a circle: none of them can be read, tested or moved alone.
//!
//! A module of one file may share a circle with its neighbour (one type whose methods fill two files); a circle through
//! two folders is refused. Reads `crate::NAME` and, in a crate's top-level files, `super::NAME`, as text. Tests may close a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Which top-level modules of a crate each of its top-level modules mentions.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Complains of every circle in the crates below `root` whose Rust files are `files`.
pub(super) fn complaints(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut crates = BTreeMap::<PathBuf, Graph>::new();
    let mut folders = BTreeSet::<(PathBuf, String)>::new();
    for file in files {
        let Some((source, module)) = place(file) else {
            continue;
        };
        let below = file.strip_prefix(&source);
        if below.is_ok_and(|below| below.iter().count() > 1) {
            folders.insert((source.clone(), module.clone()));
        }
        let text =
            fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {}", file.display()))?;
        let mentioned = mentions(&text, is_top_level(file, &source));
        crates
            .entry(source)
            .or_default()
            .entry(module)
            .or_default()
            .extend(mentioned);
    }
    let of = |(source, graph): (&PathBuf, &Graph)| {
        let is_folder = |module: &&String| folders.contains(&(source.clone(), (*module).clone()));
        circles(graph)
            .into_iter()
            .filter(|circle| circle.iter().filter(is_folder).count() > 1)
            .map(|circle| {
                let (source, names) = (source.display(), circle.join(", "));
                format!("{source}: {names} need each other in a circle")
            })
            .collect::<Vec<_>>()
    };
    Ok(crates.iter().flat_map(of).collect())
}

/// The `src` folder that a file lies below, and the top-level module that it belongs to.
fn place(file: &Path) -> Option<(PathBuf, String)> {
    let parts: Vec<_> = file.iter().map(|part| part.to_str()).collect::<Option<_>>()?;
    let at = parts.iter().position(|part| *part == "src")?;
    let module = parts.get(at + 1)?.trim_end_matches(".rs");
    let name = parts.last()?;
    let left_out = ["lib", "main", "bin"].contains(&module) || ["tests.rs", "testing.rs"].contains(name);
    (!left_out).then(|| (parts[..=at].iter().collect(), module.to_owned()))
}

/// Whether `super` means the crate's root in this file.
fn is_top_level(file: &Path, source: &Path) -> bool {
    let below = file.strip_prefix(source).unwrap_or(file);
    let depth = below.iter().count();
    depth == 1 || depth == 2 && below.ends_with("mod.rs")
}

fn mentions(text: &str, top_level: bool) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.flat_map(|line| [line, "\n"]).collect();
    let mut found = BTreeSet::new();
    for start in ["crate::"].into_iter().chain(top_level.then_some("super::")) {
        for (at, _) in code.match_indices(start) {
            let rest = &code[at + start.len()..];
            match rest.strip_prefix('{') {
                Some(list) => found.extend(first_names(list)),
                None => found.extend(first_name(rest)),
            }
        }
    }
    found
}

/// The first name of each path in `a::b, c::{d, e}, f}`.
fn first_names(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut from) = (0_u32, Vec::new(), 0);
    for (at, sign) in list.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.extend(first_name(&list[from..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.extend(first_name(&list[from..at]));
                from = at + 1;
            }
            _ => {}
        }
    }
    names
}

fn first_name(path: &str) -> Option<String> {
    let path = path.trim_start();
    let end = path.find(|sign: char| !sign.is_ascii_alphanumeric() && sign != '_');
    let name = &path[..end.unwrap_or(path.len())];
    (!name.is_empty()).then(|| name.to_owned())
}

/// The groups of modules that reach each other.
fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let mut left: BTreeSet<&String> = graph.keys().collect();
    let mut circles = Vec::new();
    while let Some(module) = left.pop_first() {
        let reached = reach(graph, module);
        let circle: Vec<String> = reached
            .iter()
            .filter(|other| *other == module || reach(graph, other).contains(module))
            .cloned()
            .collect();
        if circle.len() > 1 {
            left.retain(|other| !circle.contains(other));
            circles.push(circle);
        }
    }
    circles
}

fn reach(graph: &Graph, from: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next = vec![from.to_owned()];
    while let Some(module) = next.pop() {
        for other in graph.get(&module).into_iter().flatten() {
            if other != &module && graph.contains_key(other) && found.insert(other.clone()) {
                next.push(other.clone());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> Graph {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        edges
            .iter()
            .map(|(from, to)| ((*from).to_owned(), owned(to)))
            .collect()
    }

    #[test]
    fn a_circle_is_found_through_any_number_of_modules_and_a_tree_is_none() {
        let tree = graph(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &["outside"])]);
        assert_eq!(circles(&tree), Vec::<Vec<String>>::new());
        let ring = graph(&[("a", &["b"]), ("b", &["c"]), ("c", &["a", "c"]), ("d", &["a"])]);
        assert_eq!(circles(&ring), [["a", "b", "c"]]);
    }

    #[test]
    fn paths_are_read_in_all_their_forms() {
        let text = "use crate::{alpha::{self, B}, beta};\n// crate::comment\nfn f() { crate::gamma::g() }\n\
                    use super::delta;\n#[cfg(test)]\nmod tests {\n use crate::tested;\n}\n";
        let names = |top_level| mentions(text, top_level).into_iter().collect::<Vec<_>>();
        assert_eq!(names(false), ["alpha", "beta", "gamma"]);
        assert_eq!(names(true), ["alpha", "beta", "delta", "gamma"]);
    }

    #[test]
    fn files_belong_to_the_module_below_src() {
        let of = |path: &str| place(Path::new(path)).map(|(_, module)| module);
        assert_eq!(
            of("vmm/machine/src/virtio/blk/disk.rs").as_deref(),
            Some("virtio")
        );
        assert_eq!(of("vmm/machine/src/memory.rs").as_deref(), Some("memory"));
        assert_eq!(of("vmm/machine/src/lib.rs"), None);
        assert_eq!(of("vmm/tests/bad_input.rs"), None);
    }
}
