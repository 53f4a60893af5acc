//! All points of the chosen packages, numbered, and their sources with the points in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::finder;
use super::point::Point;
use super::rewrite::{Rewritten, rewrite};
use super::scratch::Scratch;

/// The functions that the points call.
const INJECTED: &str = include_str!("injected/levy_mutants.rs");

/// A package whose program is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MutatedPackage {
    pub(super) name: &'static str,
    /// Its sources, `lib.rs` among them.
    sources: &'static str,
}

/// In the order in which they depend on each other. What fails here first is a folder that moved.
pub(super) const PACKAGES: &[MutatedPackage] = &[
    MutatedPackage {
        name: "levy-allocator",
        sources: "allocator/src",
    },
    MutatedPackage {
        name: "levy-balloon-driver",
        sources: "balloon-driver/src",
    },
    MutatedPackage {
        name: "levy-page-share",
        sources: "page-share/src",
    },
    MutatedPackage {
        name: "levy-member",
        sources: "vmm/member/src",
    },
    MutatedPackage {
        name: "levy-manager",
        sources: "vmm/manager/src",
    },
];

/// A point with its number and where it is.
#[derive(Debug, Clone)]
pub(super) struct Mutant {
    pub(super) number: u32,
    pub(super) package: &'static str,
    pub(super) file: PathBuf,
    pub(super) point: Point,
}

/// The sources as they are and as they are built.
pub(super) struct MutatedProgram {
    sources: BTreeMap<PathBuf, String>,
    roots: Vec<&'static str>,
    mutants: Vec<Mutant>,
    removed: BTreeSet<u32>,
    rewritten: BTreeMap<PathBuf, Rewritten>,
}

impl MutatedProgram {
    /// Reads the sources of `packages` in the workspace at `root`.
    pub(super) fn read(root: &Path, packages: &[MutatedPackage]) -> Result<Self> {
        let mut program = Self {
            sources: BTreeMap::new(),
            roots: packages.iter().map(|package| package.sources).collect(),
            mutants: Vec::new(),
            removed: BTreeSet::new(),
            rewritten: BTreeMap::new(),
        };
        for package in packages {
            let mut files = Vec::new();
            collect(root, Path::new(package.sources), &mut files)?;
            program.add(package.name, files)?;
        }
        Ok(program)
    }

    fn add(&mut self, package: &'static str, mut files: Vec<(PathBuf, String)>) -> Result<()> {
        files.sort();
        let mut left_out = Vec::new();
        let mut found = Vec::new();
        for (file, source) in files {
            let points = finder::find(&source).with_context(|| file.display().to_string())?;
            left_out.extend(
                points
                    .left_out
                    .iter()
                    .map(|module| folder_of_modules(&file).join(module)),
            );
            found.push((file, source, points.points));
        }
        for (file, source, points) in found {
            if left_out
                .iter()
                .any(|module| file.starts_with(module) || file == module.with_extension("rs"))
            {
                continue;
            }
            for point in points {
                self.mutants.push(Mutant {
                    number: self.mutants.len() as u32,
                    package,
                    file: file.clone(),
                    point,
                });
            }
            self.sources.insert(file, source);
        }
        Ok(())
    }

    /// Points that compile, as far as is known.
    pub(super) fn mutants(&self) -> impl Iterator<Item = &Mutant> {
        self.mutants
            .iter()
            .filter(|mutant| !self.removed.contains(&mutant.number))
    }

    /// The numbers of the points that do not compile.
    pub(super) fn removed(&self) -> &BTreeSet<u32> {
        &self.removed
    }

    pub(super) fn remove(&mut self, numbers: impl IntoIterator<Item = u32>) {
        self.removed.extend(numbers);
    }

    /// The points of `file` that the compiler's complaint about the bytes of `span` is due to.
    pub(super) fn blamed(&self, file: &Path, span: &Range<usize>) -> Vec<u32> {
        let rewritten = self.rewritten.get(&direct(file));
        rewritten.map_or_else(Vec::new, |rewritten| rewritten.blamed(span))
    }

    /// What tells these sources and points from others.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        INJECTED.hash(&mut hasher);
        self.sources.hash(&mut hasher);
        for mutant in &self.mutants {
            (mutant.number, &mutant.point.line, &mutant.point.mutated).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Writes the sources with all points that are not removed.
    pub(super) fn write(&mut self, scratch: &Scratch) -> Result<()> {
        let mut by_file: BTreeMap<&Path, Vec<(u32, &Point)>> = BTreeMap::new();
        for mutant in self.mutants() {
            let points = by_file.entry(&mutant.file).or_default();
            points.push((mutant.number, &mutant.point));
        }
        let mut rewritten = BTreeMap::new();
        for (file, source) in &self.sources {
            let points = by_file.get(file.as_path()).map_or(&[][..], Vec::as_slice);
            rewritten.insert(file.clone(), rewrite(source, points));
        }
        let points = format!("{INJECTED}\nconst POINTS: usize = {};\n", self.mutants.len());
        for root in &self.roots {
            scratch.write(&Path::new(root).join("levy_mutants.rs"), points.as_bytes())?;
            let lib = Path::new(root).join("lib.rs");
            let text = match rewritten.get(&lib) {
                Some(rewritten) => &rewritten.text,
                None => bail!(
                    "{} is not there; mend PACKAGES in mutate/program.rs",
                    lib.display()
                ),
            };
            // At the end, so that no byte before it moves.
            let text = format!("{text}\nmod levy_mutants;\n");
            scratch.write(&lib, text.as_bytes())?;
            serve_tests(scratch, Path::new(root))?;
        }
        for (file, rewritten) in &rewritten {
            let is_root = self
                .roots
                .iter()
                .any(|root| *file == Path::new(root).join("lib.rs"));
            if !is_root {
                scratch.write(file, rewritten.text.as_bytes())?;
            }
        }
        self.rewritten = rewritten;
        Ok(())
    }
}

/// Tests that compile sources of their package into a crate of their own, as a model of them, need the injected
/// functions there, too.
fn serve_tests(scratch: &Scratch, sources: &Path) -> Result<()> {
    let module = scratch.tree.join(sources).join("levy_mutants.rs");
    let tests = sources.with_file_name("tests");
    let Ok(entries) = fs::read_dir(scratch.tree.join(&tests)) else {
        return Ok(());
    };
    for entry in entries {
        let name = entry?.file_name();
        for file in [tests.join(&name), tests.join(&name).join("main.rs")] {
            // A folder, or a test without one.
            let Ok(text) = fs::read_to_string(scratch.tree.join(&file)) else {
                continue;
            };
            let mut lines = text.lines().map(str::trim_start);
            let takes_sources = lines.any(|line| line.starts_with("#[path") && line.contains("/src/"));
            if takes_sources && !text.contains("mod levy_mutants;") {
                let text = format!("{text}\n#[path = {module:?}]\nmod levy_mutants;\n");
                scratch.write(&file, text.as_bytes())?;
            }
        }
    }
    Ok(())
}

/// `file` without steps up: `a/b/../c` is `a/c`.
fn direct(file: &Path) -> PathBuf {
    let mut direct = PathBuf::new();
    for part in file.components() {
        match part {
            Component::ParentDir => drop(direct.pop()),
            part => direct.push(part),
        }
    }
    direct
}

/// Where the modules that `file` declares have their files.
fn folder_of_modules(file: &Path) -> PathBuf {
    let folder = file.parent().unwrap_or(Path::new(""));
    match file.file_stem().and_then(|stem| stem.to_str()) {
        Some("lib" | "main" | "mod") | None => folder.to_owned(),
        Some(stem) => folder.join(stem),
    }
}

/// The Rust files below `part`.
fn collect(root: &Path, part: &Path, files: &mut Vec<(PathBuf, String)>) -> Result<()> {
    let folder = root.join(part);
    let entries = fs::read_dir(&folder).with_context(|| {
        format!(
            "{}: not there; mend PACKAGES in mutate/program.rs",
            folder.display()
        )
    })?;
    for entry in entries {
        let name = entry?.file_name();
        let file = part.join(&name);
        if root.join(&file).is_dir() {
            collect(root, &file, files)?;
        } else if file.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(root.join(&file)).with_context(|| file.display().to_string())?;
            files.push((file, text));
        }
    }
    Ok(())
}

/// The packages named in `only`, or all.
pub(super) fn chosen(only: &[String]) -> Result<Vec<MutatedPackage>> {
    for name in only {
        if !PACKAGES.iter().any(|package| package.name == name) {
            let names: Vec<&str> = PACKAGES.iter().map(|package| package.name).collect();
            bail!("--only {name}: there are {}", names.join(", "));
        }
    }
    let wanted = |package: &&MutatedPackage| only.is_empty() || only.iter().any(|name| name == package.name);
    Ok(PACKAGES.iter().filter(wanted).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_up_are_taken() {
        assert_eq!(
            direct(Path::new("a/tests/b/../../src/c.rs")),
            Path::new("a/src/c.rs")
        );
        assert_eq!(direct(Path::new("a/src/c.rs")), Path::new("a/src/c.rs"));
    }

    #[test]
    fn tests_made_of_a_package_s_sources_get_the_functions_once() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = Scratch {
            tree: folder.path().to_owned(),
            build: folder.path().join("build"),
            folder: folder.path().to_owned(),
        };
        let model = "#[path = \"../../src/a.rs\"]\nmod a;\n";
        for (file, text) in [
            ("p/tests/m/main.rs", model),
            ("p/tests/n.rs", "fn f() {}\n"),
            ("p/tests/m/x.rs", model),
        ] {
            scratch.write(Path::new(file), text.as_bytes()).unwrap();
        }
        for _ in 0..2 {
            serve_tests(&scratch, Path::new("p/src")).unwrap();
        }
        let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
        let served = read("p/tests/m/main.rs");
        assert!(served.starts_with(model), "{served}");
        assert_eq!(served.matches("p/src/levy_mutants.rs").count(), 1, "{served}");
        assert_eq!(read("p/tests/n.rs"), "fn f() {}\n");
        assert_eq!(read("p/tests/m/x.rs"), model, "not the root of a crate");
    }
}
