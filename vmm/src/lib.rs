//! The library behind the `levy` binary.
