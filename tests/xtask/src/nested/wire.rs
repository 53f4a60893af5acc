//! The frames between this machine and the inside of the nested host: both ends use this file.
//!
//! A frame is one byte of kind, four bytes of length (little endian) and that many bytes of payload. The channel is a
//! virtio serial port, which is reliable and ordered, so there is nothing to acknowledge.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Longest payload that is believed; a longer one means the stream is out of step.
const LONGEST: u32 = 16 << 20;

/// A command to run inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Program and arguments; never empty.
    pub(crate) argv: Vec<String>,
    /// Working directory.
    pub(crate) cwd: String,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
}

/// What goes over the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Inside to outside: the host is up and waits for a job.
    Ready,
    /// Outside to inside: run this.
    Start(Job),
    /// Outside to inside: end the job and all it started.
    Kill,
    /// Outside to inside: nothing but an interrupt. QEMU's emulation of nested virtualization now and then loses the
    /// one that a timer raised, and a host that waits for nothing else then sleeps forever; the next interrupt, whatever
    /// it is, delivers both.
    Nudge,
    /// Inside to outside: the job's output.
    Stdout(Vec<u8>),
    /// Inside to outside: the job's error output.
    Stderr(Vec<u8>),
    /// Inside to outside: the job ended with this status (128 + signal where a signal ended it).
    Exit(i32),
}

impl Frame {
    /// Writes the frame and flushes.
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, payload) = match self {
            Self::Ready => (b'r', Vec::new()),
            Self::Start(job) => (b's', serde_json::to_vec(job)?),
            Self::Kill => (b'k', Vec::new()),
            Self::Nudge => (b'n', Vec::new()),
            Self::Stdout(bytes) => (b'o', bytes.clone()),
            Self::Stderr(bytes) => (b'e', bytes.clone()),
            Self::Exit(status) => (b'x', status.to_le_bytes().to_vec()),
        };
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut bytes = vec![kind];
        bytes.extend(length.to_le_bytes());
        bytes.extend(payload);
        to.write_all(&bytes)?;
        to.flush()
    }

    /// Reads the next frame; `None` at the end of the stream.
    pub(crate) fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; 5];
        match from.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length);
        if length > LONGEST {
            return Err(out_of_step(&format!("a frame of {length} bytes")));
        }
        let mut payload = vec![0; length as usize];
        from.read_exact(&mut payload)?;
        Self::parse(kind, payload).map(Some)
    }

    fn parse(kind: u8, payload: Vec<u8>) -> io::Result<Self> {
        Ok(match kind {
            b'r' => Self::Ready,
            b's' => Self::Start(serde_json::from_slice(&payload)?),
            b'k' => Self::Kill,
            b'n' => Self::Nudge,
            b'o' => Self::Stdout(payload),
            b'e' => Self::Stderr(payload),
            b'x' => {
                let status = payload.try_into().map_err(|_| out_of_step("a short status"))?;
                Self::Exit(i32::from_le_bytes(status))
            }
            other => return Err(out_of_step(&format!("a frame of kind {other:#x}"))),
        })
    }
}

fn out_of_step(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the channel to the nested host is out of step: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_went() {
        let frames = [
            Frame::Ready,
            Frame::Start(Job {
                argv: vec!["echo".into(), "two words".into()],
                cwd: "/".into(),
                env: vec![("A".into(), "1".into())],
            }),
            Frame::Stdout(vec![0, 255, 10]),
            Frame::Stderr(Vec::new()),
            Frame::Kill,
            Frame::Nudge,
            Frame::Exit(-1),
        ];
        let mut stream = Vec::new();
        for frame in &frames {
            frame.write(&mut stream).unwrap();
        }
        let mut stream = stream.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut stream).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut stream).unwrap(), None);
    }

    #[test]
    fn noise_is_told_from_frames() {
        let long = [b'o', 255, 255, 255, 255];
        assert!(Frame::read(&mut long.as_slice()).is_err());
        let strange = [b'?', 0, 0, 0, 0];
        assert!(Frame::read(&mut strange.as_slice()).is_err());
        let cut = [b'x', 4, 0, 0, 0, 1];
        assert!(Frame::read(&mut cut.as_slice()).is_err());
    }
}
