//! The library behind the `levy` binary.

pub mod doctor;
