//! Folders of one crate that need each other in a circle: none of them can be read, tested or moved alone.
//!
//! A module of one file may share a circle with its neighbour (one type whose methods fill two files); a circle through
//! two folders is refused, at a crate's top and inside each of its folders. Reads `crate::NAME`, `crate::FOLDER::NAME`
//! and, in the files right in a folder, `super::NAME`, as text. Tests may close a circle, and so may a folder's `mod.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Which modules of a folder each of its modules mentions.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Complains of every circle in the crates below `root` whose Rust files are `files`.
pub(super) fn complaints(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut graphs = BTreeMap::<PathBuf, Graph>::new();
    let mut folders = BTreeSet::<PathBuf>::new();
    for file in files {
        let places = places(file);
        if places.is_empty() {
            continue;
        }
        let text =
            fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {}", file.display()))?;
        for place in places {
            if place.is_folder {
                folders.insert(place.folder.join(&place.module));
            }
            let modules = graphs.entry(place.folder).or_default();
            let mentioned = modules.entry(place.module).or_default();
            mentioned.extend(mentions(&text, &place.starts));
        }
    }
    let of = |(folder, graph): (&PathBuf, &Graph)| {
        let is_folder = |module: &&String| folders.contains(&folder.join(module));
        circles(graph)
            .into_iter()
            .filter(|circle| circle.iter().filter(is_folder).count() > 1)
            .map(|circle| {
                let (folder, names) = (folder.display(), circle.join(", "));
                format!("{folder}: {names} need each other in a circle")
            })
            .collect::<Vec<_>>()
    };
    Ok(graphs.iter().flat_map(of).collect())
}

/// A file as a part of one of the folders that it is in.
struct ModulePlace {
    folder: PathBuf,
    /// The module of the folder that the file belongs to.
    module: String,
    /// That module is a folder itself.
    is_folder: bool,
    /// What paths to other modules of the folder begin with in this file.
    starts: Vec<String>,
}

/// The places of a file, the `src` folder first.
fn places(file: &Path) -> Vec<ModulePlace> {
    let Some(parts) = file.iter().map(|part| part.to_str()).collect::<Option<Vec<_>>>() else {
        return Vec::new();
    };
    let Some(at) = parts.iter().position(|part| *part == "src") else {
        return Vec::new();
    };
    let below: Vec<&str> = parts[at + 1..]
        .iter()
        .map(|part| part.trim_end_matches(".rs"))
        .collect();
    let left_out = |name: &&str| ["lib", "main", "bin"].contains(name);
    let is_test = |name: &&str| ["tests", "testing"].contains(name);
    if below.first().is_none_or(left_out) || below.iter().any(is_test) {
        return Vec::new();
    }
    let last = below.len() - 1;
    let is_module = |depth: &usize| *depth < last || *depth == 0 || below[last] != "mod";
    let place = |depth: usize| {
        let path: String = below[..depth].iter().flat_map(|name| [name, "::"]).collect();
        // There `super` means the folder.
        let direct = depth == last || depth + 1 == last && below[last] == "mod";
        ModulePlace {
            folder: parts[..=at + depth].iter().collect(),
            module: below[depth].to_owned(),
            is_folder: depth < last,
            starts: [format!("crate::{path}")]
                .into_iter()
                .chain(direct.then(|| "super::".to_owned()))
                .collect(),
        }
    };
    (0..below.len()).filter(is_module).map(place).collect()
}

fn mentions(text: &str, starts: &[String]) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.flat_map(|line| [line, "\n"]).collect();
    let mut found = BTreeSet::new();
    for start in starts {
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
        let names = |starts: &[&str]| {
            let starts: Vec<String> = starts.iter().map(ToString::to_string).collect();
            mentions(text, &starts).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(names(&["crate::"]), ["alpha", "beta", "gamma"]);
        assert_eq!(
            names(&["crate::", "super::"]),
            ["alpha", "beta", "delta", "gamma"]
        );
        assert_eq!(names(&["crate::gamma::"]), ["g"]);
    }

    #[test]
    fn files_belong_to_a_module_of_each_folder_that_they_are_in() {
        let of = |path: &str| -> Vec<(String, bool, String)> {
            let places = places(Path::new(path)).into_iter();
            let place = |place: ModulePlace| (place.module, place.is_folder, place.starts.join(" "));
            places.map(place).collect()
        };
        let place = |module: &str, is_folder, starts: &str| (module.to_owned(), is_folder, starts.to_owned());
        assert_eq!(
            of("vmm/machine/src/virtio/blk/disk.rs"),
            [
                place("virtio", true, "crate::"),
                place("blk", true, "crate::virtio::"),
                place("disk", false, "crate::virtio::blk:: super::"),
            ]
        );
        assert_eq!(
            of("vmm/machine/src/virtio/mod.rs"),
            [place("virtio", true, "crate:: super::")]
        );
        assert_eq!(
            of("vmm/machine/src/memory.rs"),
            [place("memory", false, "crate:: super::")]
        );
        for none in [
            "vmm/machine/src/lib.rs",
            "vmm/tests/bad_input.rs",
            "a/src/b/tests/c.rs",
        ] {
            assert_eq!(of(none), []);
        }
    }

    #[test]
    fn a_circle_inside_a_folder_is_found_and_one_of_single_files_is_none() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "src/a/one/mod.rs",
            "use crate::a::two::T;\nuse super::three::U;\n",
        );
        write("src/a/two/x.rs", "use crate::a::one::S;\n");
        write("src/a/three.rs", "use super::four::V;\n");
        write("src/a/four.rs", "use super::three::U;\n");
        let files = [
            "src/a/one/mod.rs",
            "src/a/two/x.rs",
            "src/a/three.rs",
            "src/a/four.rs",
        ];
        assert_eq!(
            complaints(root.path(), &files.map(PathBuf::from)).unwrap(),
            ["src/a: one, two need each other in a circle"]
        );
    }
}
