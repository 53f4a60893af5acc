//! An error with its causes, on one line.

use std::error::Error;

use crate::limits;

/// An error and its causes on one line, and what to do where a limit of this process is the last of them.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent and wrapping errors repeat their source; say everything once.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        if let Some(cure) = error.downcast_ref().and_then(limits::cure) {
            text.push_str("; ");
            text.push_str(&cure);
        }
        cause = error.source();
    }
    text
}
