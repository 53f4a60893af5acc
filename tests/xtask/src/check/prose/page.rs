//! How a document reads: its semicolons and its long sentences.

use std::fmt;

use super::sentences::sentences;

/// Of 100 sentences, so many semicolons are too many.
const SEMICOLON_LIMIT: usize = 10;

/// With so few sentences one semicolon would be too many.
const FEW: usize = 10;

/// A tenth of the sentences may have so many words and more.
const WORD_LIMIT: usize = 35;

/// The figures of one document.
#[derive(Debug, Default)]
pub(super) struct Page {
    sentences: usize,
    semicolons: usize,
    /// Words of the sentence than which a tenth are longer.
    long: usize,
}

impl Page {
    pub(super) fn of(markdown: &str) -> Self {
        let sentences = sentences(markdown);
        let mut lengths: Vec<_> = sentences.iter().map(|sentence| words(sentence)).collect();
        lengths.sort_unstable();
        Self {
            sentences: lengths.len(),
            semicolons: sentences.iter().map(|text| text.matches(';').count()).sum(),
            long: lengths.get(lengths.len() * 9 / 10).copied().unwrap_or(0),
        }
    }

    /// What is wrong with it.
    pub(super) fn faults(&self) -> impl Iterator<Item = String> {
        let many = self.sentences > FEW && self.semicolons * 100 >= self.sentences * SEMICOLON_LIMIT;
        let semicolons = many.then(|| format!("{self}: fewer than {SEMICOLON_LIMIT} semicolons, please"));
        let long = self.long >= WORD_LIMIT;
        let words = long.then(|| format!("{self}: fewer than {WORD_LIMIT} words, please"));
        semicolons.into_iter().chain(words)
    }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_hundred = self.semicolons as f64 * 100.0 / self.sentences.max(1) as f64;
        let (sentences, long) = (self.sentences, self.long);
        write!(
            f,
            "{sentences} sentences, {per_hundred:.1} semicolons in 100, {long} words at p90"
        )
    }
}

fn words(sentence: &str) -> usize {
    let words = sentence.split_whitespace();
    words.filter(|word| word.contains(char::is_alphanumeric)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(sentence: &str, times: usize) -> Page {
        Page::of(&format!("{sentence}\n\n").repeat(times))
    }

    #[test]
    fn semicolons_count_where_there_are_enough_sentences() {
        assert_eq!(page("Pears; plums.", 11).faults().count(), 1);
        assert_eq!(page("Pears; plums.", 10).faults().count(), 0);
        let one = format!("Pears; plums.\n\n{}", "Pears.\n\n".repeat(10));
        assert_eq!(Page::of(&one).faults().count(), 0);
    }

    #[test]
    fn a_tenth_of_the_sentences_may_be_long() {
        let (long, short) = ("pear ".repeat(35), "Pear.\n\n");
        assert_eq!(
            Page::of(&format!("{}{long}", short.repeat(10))).faults().count(),
            0
        );
        assert_eq!(
            Page::of(&format!("{}{long}", short.repeat(9))).faults().count(),
            1
        );
        assert_eq!(page(&"pear ".repeat(34), 1).faults().count(), 0);
    }

    #[test]
    fn only_what_has_letters_or_digits_is_a_word() {
        assert_eq!(words("one -> `` 2, - (three)"), 3);
    }

    #[test]
    fn an_empty_page_has_no_faults() {
        assert_eq!(Page::of("# Head\n").faults().count(), 0);
    }
}
