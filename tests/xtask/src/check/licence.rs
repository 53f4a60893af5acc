//! Licence expressions (SPDX 2.3, annex D): may we ship what is under this one?

/// Whether the expression leaves a choice that is allowed. Nonsense is not.
pub(super) fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    // Old manifests write "MIT/Apache-2.0" for OR.
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    either(&mut rest, allowed).unwrap_or(false) && rest.is_empty()
}

fn either(rest: &mut &[&str], list: &[String]) -> Option<bool> {
    let mut allowed = both(rest, list)?;
    while take(rest, "OR") {
        allowed |= both(rest, list)?;
    }
    Some(allowed)
}

fn both(rest: &mut &[&str], list: &[String]) -> Option<bool> {
    let mut allowed = one(rest, list)?;
    while take(rest, "AND") {
        allowed &= one(rest, list)?;
    }
    Some(allowed)
}

fn one(rest: &mut &[&str], list: &[String]) -> Option<bool> {
    if take(rest, "(") {
        let inner = either(rest, list)?;
        return take(rest, ")").then_some(inner);
    }
    let (name, after) = rest.split_first()?;
    *rest = after;
    if !take(rest, "WITH") {
        return Some(list.iter().any(|allowed| allowed == name));
    }
    let (exception, after) = rest.split_first()?;
    *rest = after;
    Some(list.contains(&format!("{name} WITH {exception}")))
}

fn take(rest: &mut &[&str], word: &str) -> bool {
    match rest.split_first() {
        Some((first, after)) if *first == word => {
            *rest = after;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    fn is_allowed(expression: &str) -> bool {
        let allowed = ["MIT", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"].map(str::to_owned);
        super::is_allowed(expression, &allowed)
    }

    #[test]
    fn a_choice_is_enough_a_demand_is_not() {
        assert!(is_allowed("MIT"));
        assert!(is_allowed("MIT/Apache-2.0"));
        assert!(is_allowed("GPL-3.0 OR MIT"));
        assert!(!is_allowed("GPL-3.0 AND MIT"));
        assert!(is_allowed("(MIT OR GPL-3.0) AND Unicode-3.0"));
        assert!(!is_allowed("MIT OR GPL-3.0 AND") && !is_allowed("(MIT") && !is_allowed(""));
    }

    #[test]
    fn exceptions_belong_to_their_licence() {
        assert!(is_allowed("Apache-2.0 WITH LLVM-exception OR GPL-2.0"));
        assert!(!is_allowed("GPL-2.0 WITH Classpath-exception-2.0"));
    }
}
