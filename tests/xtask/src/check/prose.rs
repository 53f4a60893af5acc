//! Prose: comments name who acts, documents are made of short sentences.
//!
//! Everything is counted and printed, so that a change shows before it fails.

mod comments;
mod names;
mod page;
mod sentences;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::committed;
use comments::Comments;
use page::Page;

/// Words that leave open which process, thread, guest or user is meant.
const VAGUE: &[&str] = &["whoever", "nobody", "somebody", "everybody", "anybody"];

/// Of 1,000 comment lines, so many with a vague word are too many.
const VAGUE_LIMIT: usize = 1;

pub(super) fn complaints(root: &Path) -> Result<Vec<String>> {
    let files = read(root, committed::files(root, &["*.rs"])?)?;
    let mut complaints = of_comments(&files);
    complaints.extend(names::doubles(&files));
    for (path, text) in read(root, documents(root)?)? {
        complaints.extend(of_document(&path, &text));
    }
    Ok(complaints)
}

fn of_comments(files: &[(PathBuf, String)]) -> Vec<String> {
    let mut all = Comments::default();
    let mut complaints = Vec::new();
    for (path, text) in files {
        let comments = Comments::of(text, VAGUE);
        let place = |line: &usize| format!("{}:{line}: name who acts", path.display());
        complaints.extend(comments.vague.iter().map(place));
        all.add(comments);
    }
    let (vague, lines) = (all.vague.len(), all.lines);
    eprintln!(
        "  comments: {vague} of {lines} lines have one of {}",
        VAGUE.join(", ")
    );
    match all.are_vague(VAGUE_LIMIT) {
        true => complaints,
        false => Vec::new(),
    }
}

fn of_document(path: &Path, text: &str) -> Vec<String> {
    let page = Page::of(text);
    let path = path.display();
    eprintln!("  {path}: {page}");
    page.faults().map(|fault| format!("{path}: {fault}")).collect()
}

/// The documents that people read first, and all in `docs`.
fn documents(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::from("README.md"), PathBuf::from("CHANGELOG.md")];
    for entry in fs::read_dir(root.join("docs")).context("cannot list docs")? {
        let path = Path::new("docs").join(entry.context("cannot list docs")?.file_name());
        found.extend(path.extension().is_some_and(|end| end == "md").then_some(path));
    }
    found.sort();
    Ok(found)
}

fn read(root: &Path, paths: Vec<PathBuf>) -> Result<Vec<(PathBuf, String)>> {
    let read = |path: PathBuf| -> Result<_> {
        let text = fs::read_to_string(root.join(&path));
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        Ok((path, text))
    };
    paths.into_iter().map(read).collect()
}
