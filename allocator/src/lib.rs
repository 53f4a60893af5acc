//! Share-based memory allocation with an idle-memory tax, sampled activity and admission control.
#![forbid(unsafe_code)]
