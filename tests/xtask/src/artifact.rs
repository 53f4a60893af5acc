//! What cargo says of something that it built.

use std::path::PathBuf;

use serde::Deserialize;

/// A line of `cargo --message-format=json`, the part that is looked at.
#[derive(Deserialize)]
pub(crate) struct Artifact {
    pub(crate) manifest_path: PathBuf,
    pub(crate) target: Target,
    pub(crate) profile: Profile,
    pub(crate) executable: Option<PathBuf>,
}

#[derive(Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) src_path: PathBuf,
}

#[derive(Deserialize)]
pub(crate) struct Profile {
    pub(crate) test: bool,
}
