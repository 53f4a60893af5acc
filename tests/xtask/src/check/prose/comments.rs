//! Comment lines of Rust sources, and which of them have unwanted words.

/// The comment lines of one file or of many.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Comments {
    /// Lines that are nothing but a comment.
    pub(super) lines: usize,
    /// Numbers of those with an unwanted word, from 1 in each file.
    pub(super) vague: Vec<usize>,
}

impl Comments {
    pub(super) fn of(text: &str, words: &[&str]) -> Self {
        let lines = text.lines().zip(1..);
        let comments: Vec<_> = lines
            .filter(|(line, _)| line.trim_start().starts_with("//"))
            .collect();
        let vague = comments.iter().filter(|(line, _)| has_word(line, words));
        Self {
            lines: comments.len(),
            vague: vague.map(|(_, number)| *number).collect(),
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.lines += other.lines;
        self.vague.extend(other.vague);
    }

    /// Whether `limit` or more of 1,000 lines have an unwanted word.
    pub(super) fn are_vague(&self, limit: usize) -> bool {
        !self.vague.is_empty() && self.vague.len() * 1000 >= self.lines * limit
    }
}

/// Whether one of `words` stands in `line` outside inline code.
fn has_word(line: &str, words: &[&str]) -> bool {
    let prose = line.split('`').step_by(2);
    let mut found = prose.flat_map(|part| part.split(|sign: char| !sign.is_alphanumeric()));
    found.any(|word| words.iter().any(|unwanted| word.eq_ignore_ascii_case(unwanted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_comments_are_counted() {
        let text = "//! A pear.\nfn pear() {} // pear\n    /// Two pears.\n\n// An apple.\n";
        let comments = Comments::of(text, &["pear", "apple"]);
        assert_eq!((comments.lines, comments.vague), (3, vec![1, 5]));
    }

    #[test]
    fn words_are_whole_in_any_case_and_not_code() {
        let vague = |line: &str| has_word(line, &["pear"]);
        assert!(vague("// Pear's") && vague("// a (pear)") && vague("// `a` pear `b`"));
        assert!(!vague("// pears") && !vague("// `pear`") && !vague("// spear"));
    }

    #[test]
    fn the_limit_is_in_lines_of_a_thousand() {
        let of = |lines, vague: usize| Comments {
            lines,
            vague: vec![1; vague],
        };
        assert!(of(1000, 1).are_vague(1) && of(10, 1).are_vague(1));
        assert!(!of(1001, 1).are_vague(1) && !of(0, 0).are_vague(1));
        let mut both = of(600, 0);
        both.add(of(400, 1));
        assert!(both.are_vague(1));
    }
}
