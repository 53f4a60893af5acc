//! Rules for single files: a header that says what the file is, and unsafe code only where a file declares it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::committed;

pub(super) fn complaints(root: &Path) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for path in committed::files(root, &["*.rs"])? {
        let text = fs::read_to_string(root.join(&path))
            .with_context(|| format!("cannot read {}", path.display()))?;
        complaints.extend(of(&path, &text));
    }
    Ok(complaints)
}

fn of(path: &Path, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut complain = |what: &str| complaints.push(format!("{}: {what}", path.display()));
    if !text.starts_with("//!") {
        complain("does not open with //!");
    }
    let has_line = |start: &str| text.lines().any(|line| line.trim_start().starts_with(start));
    let declared = has_line("#![allow(unsafe_code)]");
    if declared && !has_line("// UNSAFETY:") {
        complain("allows unsafe code without saying why (// UNSAFETY: ...)");
    }
    // Put together here so that this file does not find itself.
    let item_level = concat!("#[allow(", "unsafe_code");
    if text.lines().any(|line| line.trim_start().starts_with(item_level)) {
        complain("allows unsafe code for an item: declare it for the file, or move it to one that does");
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_text(text: &str) -> usize {
        of(Path::new("a.rs"), text).len()
    }

    #[test]
    fn files_need_their_headers() {
        assert_eq!(of_text("//! A noun.\nfn f() {}\n"), 0);
        assert_eq!(of_text("fn f() {}\n"), 1);
        assert_eq!(of_text("//! A noun.\n#![allow(unsafe_code)]\n"), 1);
        assert_eq!(
            of_text("//! A noun.\n// UNSAFETY: ioctls.\n#![allow(unsafe_code)]\n"),
            0
        );
    }

    #[test]
    fn unsafe_code_is_declared_per_file() {
        let text = format!(
            "//! A noun.\n{}\nfn f() {{}}\n",
            concat!("#[allow(", "unsafe_code)]")
        );
        assert_eq!(of_text(&text), 1);
    }
}
