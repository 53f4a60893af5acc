//! The manager's API, asked with little patience: a manager that hangs must not hold up its watcher.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long a manager may take to send, or to take, anything.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is at `path` of the manager in `dir`.
pub(crate) fn get<T: DeserializeOwned>(dir: &Path, path: &str) -> anyhow::Result<T> {
    let (status, body) = request(dir, "GET", path, "")?;
    match status {
        200 => serde_json::from_str(&body).context("an answer of another kind"),
        _ => bail!("{path}: {status} {body}"),
    }
}

/// Changes what is at `path` with `method`; whether that was accepted.
pub(crate) fn change(dir: &Path, method: &str, path: &str, change: &impl Serialize) -> anyhow::Result<bool> {
    let (status, body) = request(dir, method, path, &serde_json::to_string(change)?)?;
    match status {
        200..=299 => Ok(true),
        400..=499 => Ok(false),
        _ => bail!("{path}: {status} {body}"),
    }
}

fn request(dir: &Path, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = UnixStream::connect(dir.join("api.sock"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: levy\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok((status.context("no status")?, body.to_owned()))
}
