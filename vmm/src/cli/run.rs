//! `levy run`: guests for people.

/// Run one or more guests.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {}
