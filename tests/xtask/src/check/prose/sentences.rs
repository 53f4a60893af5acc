//! The sentences of a Markdown document.
//!
//! Code, tables, headings and link targets are not prose. A list item and a paragraph end their last sentence.

/// All sentences, in order. Inline code is left as a pair of backticks.
pub(super) fn sentences(markdown: &str) -> Vec<String> {
    let paragraphs = paragraphs(markdown);
    paragraphs
        .iter()
        .flat_map(|text| split(&without_code(text)))
        .collect()
}

/// The paragraphs and list items, each on one line.
fn paragraphs(markdown: &str) -> Vec<String> {
    let (mut found, mut fenced, mut open) = (Vec::<String>::new(), false, false);
    for line in markdown.lines() {
        let text = line.trim();
        if text.starts_with("```") {
            (fenced, open) = (!fenced, false);
            continue;
        }
        let indented = line.starts_with("    ") && !open;
        if fenced || indented || text.is_empty() || text.starts_with(['|', '#']) {
            open = false;
            continue;
        }
        let item = list_item(text);
        match found.last_mut().filter(|_| open && item.is_none()) {
            Some(paragraph) => {
                paragraph.push(' ');
                paragraph.push_str(text);
            }
            None => found.push(item.unwrap_or(text).to_owned()),
        }
        open = true;
    }
    found
}

/// What follows the mark of a list item.
fn list_item(text: &str) -> Option<&str> {
    let (mark, rest) = text.split_once(' ')?;
    let number = mark.strip_suffix('.').unwrap_or_default();
    let numbered = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    (["-", "*", "+"].contains(&mark) || numbered).then_some(rest)
}

/// Drops the contents of inline code, the targets of links and the stars of emphasis.
fn without_code(paragraph: &str) -> String {
    let parts: Vec<_> = paragraph.split('`').step_by(2).collect();
    let mut text = parts.join("``").replace('*', "");
    while let Some(at) = text.find("](") {
        let end = text[at..].find(')').map_or(text.len(), |length| at + length + 1);
        text.replace_range(at..end, "");
    }
    text.replace('[', "")
}

/// Splits behind a full stop, question or exclamation mark that no small letter follows.
fn split(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let sentence = found.last_mut().expect("there is always one");
        sentence.push_str(word);
        sentence.push(' ');
        let bare = word.trim_end_matches([')', '"', ']']);
        let goes_on = words
            .peek()
            .is_some_and(|next| next.starts_with(char::is_lowercase));
        if bare.ends_with(['.', '!', '?']) && !goes_on {
            found.push(String::new());
        }
    }
    found.retain(|sentence| sentence.contains(char::is_alphanumeric));
    found
}

#[cfg(test)]
mod tests {
    use super::sentences;

    #[test]
    fn a_sentence_ends_at_its_mark() {
        let text = "One is 1.5 long. Two\nis not?\n`code` starts three (it does.) Four etc. goes on";
        let found = sentences(text);
        assert_eq!(found.len(), 4);
        assert_eq!(found[2].trim(), "`` starts three (it does.)");
    }

    #[test]
    fn items_and_paragraphs_end_sentences() {
        assert_eq!(sentences("- one\n- two\n  goes on\n\n3. three\nfour").len(), 3);
        assert_eq!(sentences("one\n\ntwo").len(), 2);
    }

    #[test]
    fn what_is_not_prose_is_left_out() {
        let text =
            "# Head\n| a | b |\n```\ncode\n```\n\n    more code\n\nSee [the `x;y` page](a.md#b;c) **now**.";
        let found = sentences(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].trim(), "See the `` page now.");
    }
}
