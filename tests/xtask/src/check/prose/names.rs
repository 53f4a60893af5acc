//! Type names that stand twice in one crate: a reader has to look which one is meant.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Types whose name another type of the same crate has too, tests left out.
pub(super) fn doubles(files: &[(PathBuf, String)]) -> Vec<String> {
    let mut seen = BTreeMap::<(PathBuf, &str), Vec<&Path>>::new();
    for (path, text) in files {
        let Some(source) = source(path) else { continue };
        for name in types(text) {
            seen.entry((source.clone(), name)).or_default().push(path);
        }
    }
    let mut doubles = Vec::new();
    for ((_, name), places) in seen {
        if places.len() > 1 {
            let others = places[1..].iter().map(|path| path.display().to_string());
            let others = others.collect::<Vec<_>>().join(" and ");
            doubles.push(format!(
                "{}: the name {name} stands in {others} too",
                places[0].display()
            ));
        }
    }
    doubles
}

/// What is compiled together with this file: a crate's `src` folder, or one of its programs.
fn source(path: &Path) -> Option<PathBuf> {
    let parts: Vec<_> = path.iter().collect();
    let at = parts.iter().position(|part| *part == "src")?;
    let program = parts.get(at + 1).is_some_and(|part| *part == "bin");
    let tests = path.file_name().is_some_and(|name| name == "tests.rs");
    let end = if program { at + 3 } else { at + 1 };
    (!tests).then(|| parts[..end.min(parts.len())].iter().collect())
}

fn types(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    code.lines().filter_map(type_name)
}

/// The name of the type or trait that this line begins.
fn type_name(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let kind = words.by_ref().find(|word| !is_modifier(word))?;
    let name = words
        .next()
        .filter(|_| ["struct", "enum", "trait"].contains(&kind))?;
    let end = name.find(|sign: char| !sign.is_alphanumeric() && sign != '_');
    Some(&name[..end.unwrap_or(name.len())])
}

fn is_modifier(word: &str) -> bool {
    word == "unsafe" || word.starts_with("pub")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_with_all_their_modifiers() {
        let text = "pub(crate) struct Pear<T> {\n    enum Plum {\npub unsafe trait Fig: Sized {}\nstruct Nut;\n\
                    impl Pear {\n// struct Kiwi\nlet structure = Lime;\n#[cfg(test)]\nmod tests {\n    struct Date;\n";
        assert_eq!(types(text).collect::<Vec<_>>(), ["Pear", "Plum", "Fig", "Nut"]);
    }

    #[test]
    fn crates_and_programs_are_apart() {
        let file = |path: &str| (PathBuf::from(path), "struct Pear;\n".to_owned());
        assert_eq!(
            doubles(&[file("a/src/one.rs"), file("a/src/b/two.rs")]),
            ["a/src/one.rs: the name Pear stands in a/src/b/two.rs too"]
        );
        assert_eq!(doubles(&[file("a/src/one.rs"), file("b/src/one.rs")]), [""; 0]);
        assert_eq!(
            doubles(&[file("a/src/bin/x/main.rs"), file("a/src/bin/y.rs")]),
            [""; 0]
        );
        assert_eq!(
            doubles(&[file("a/src/one.rs"), file("a/src/b/tests.rs")]),
            [""; 0]
        );
        assert_eq!(
            doubles(&[file("a/tests/one.rs"), file("a/tests/two.rs")]),
            [""; 0]
        );
    }
}
