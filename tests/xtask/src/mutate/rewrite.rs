//! Puts the points of one file into its source, each behind its number.

use std::collections::BTreeMap;
use std::ops::Range;

use super::point::{NUMBER, Point, Side};

/// A file with its points in it.
#[derive(Debug, Default)]
pub(super) struct Rewritten {
    pub(super) text: String,
    /// Which bytes of the text belong to which point.
    places: BTreeMap<u32, Range<usize>>,
}

/// Writes `source` with `points`, outer ones before inner ones, each under its number.
pub(super) fn rewrite(source: &str, points: &[(u32, &Point)]) -> Rewritten {
    let mut edits: Vec<_> = (0isize..)
        .zip(points)
        .flat_map(|(order, (number, point))| point.edits.iter().map(move |edit| (order, *number, edit)))
        .collect();
    edits.sort_by_key(|(order, _, edit)| {
        let order = if edit.side == Side::Close { -order } else { *order };
        (edit.at.start, edit.side, order)
    });
    let mut rewritten = Rewritten::default();
    let mut at = 0;
    for (_, number, edit) in edits {
        rewritten.text.push_str(&source[at..edit.at.start]);
        let start = rewritten.text.len();
        rewritten
            .text
            .push_str(&edit.text.replace(NUMBER, &number.to_string()));
        let end = rewritten.text.len();
        let place = rewritten.places.entry(number).or_insert(start..end);
        place.end = end;
        at = edit.at.end;
    }
    rewritten.text.push_str(&source[at..]);
    rewritten
}

impl Rewritten {
    /// The innermost point that covers the bytes of `span`; else those that it touches.
    pub(super) fn blamed(&self, span: &Range<usize>) -> Vec<u32> {
        let touching = || {
            self.places
                .iter()
                .filter(|(_, place)| place.start < span.end.max(span.start + 1) && span.start < place.end)
        };
        let covering = touching().filter(|(_, place)| place.start <= span.start && span.end <= place.end);
        match covering.min_by_key(|(_, place)| place.len()) {
            Some((number, _)) => vec![*number],
            None => touching().map(|(number, _)| *number).collect(),
        }
    }
}
