//! A place in a source file where the program can be changed, and the change.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// What a change does. All of them compile wherever the original does, or nearly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// A condition of `if`, `while` or a match arm is the other way round.
    Condition,
    /// A comparison includes or excludes equality, or is the other way round.
    Comparison,
    /// One side of `&&` or `||` does not count.
    Operand,
    /// A statement does not happen.
    Statement,
    /// A number is one larger or smaller.
    Number,
    /// A `Some` is a `None`.
    Some,
}

/// A place and its change.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) kind: Kind,
    /// The line in the original, from 1 on.
    pub(super) line: usize,
    pub(super) original: String,
    pub(super) mutated: String,
    /// In the order in which they stand in the file.
    pub(super) edits: Vec<Edit>,
}

/// A replaced piece of the original. The text holds [`NUMBER`] where the point's number goes.
#[derive(Debug, Clone)]
pub(super) struct Edit {
    pub(super) at: Range<usize>,
    pub(super) side: Side,
    pub(super) text: String,
}

/// Stands for the number of a point.
pub(super) const NUMBER: &str = "\u{1}";

/// Where an edit stands among others at the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// Behind an expression: inner ones first.
    Close,
    /// Instead of an operator.
    Middle,
    /// Before an expression: outer ones first.
    Open,
}

impl Point {
    /// Puts `before` and `after` around `span`.
    pub(super) fn around(span: &Range<usize>, before: &str, after: &str) -> Vec<Edit> {
        let edit = |at: usize, side, text: &str| Edit {
            at: at..at,
            side,
            text: text.to_owned(),
        };
        vec![
            edit(span.start, Side::Open, before),
            edit(span.end, Side::Close, after),
        ]
    }
}
