//! `levy`: run many Linux guests on one host.
fn main() {}
