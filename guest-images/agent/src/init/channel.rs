//! The line to the host: a virtio console, or what there is instead.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use levy_agent::{CONSOLE_PREFIX, Event, MAX_LINE, PORT_NAME, Report};
use nix::fcntl::OFlag;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::clock::uptime_ms;

/// Ports of a device with several come some time after its driver: host and driver first talk about them.
const PORT_WAIT: Duration = Duration::from_secs(5);

/// The number of a console in the virtio specification, as sysfs shows it.
const VIRTIO_CONSOLE: &str = "0x0003";

/// Both directions of the channel. Lines are written whole.
pub(crate) struct Channel {
    name: String,
    prefix: &'static str,
    writer: Mutex<Option<File>>,
    reader: Mutex<Option<BufReader<File>>>,
}

impl Channel {
    /// Opens the best device there is; with none at all, reports go nowhere and no command comes.
    pub(crate) fn open() -> Self {
        let until = Instant::now() + PORT_WAIT;
        loop {
            let ports = [named_port(), Some("hvc0".to_owned()), Some("vport0p1".to_owned())];
            if let Some(channel) = ports.into_iter().flatten().find_map(|name| Self::on(&name, "")) {
                return channel;
            }
            if !console_device() || Instant::now() > until {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        Self::on("console", CONSOLE_PREFIX).unwrap_or_else(|| Self {
            name: "none".to_owned(),
            prefix: "",
            writer: Mutex::new(None),
            reader: Mutex::new(None),
        })
    }

    fn on(name: &str, prefix: &'static str) -> Option<Self> {
        let path = Path::new("/dev").join(name);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NOCTTY.bits());
        let file = options.open(path).ok()?;
        make_raw(&file, prefix.is_empty());
        let reader = file.try_clone().ok()?;
        Some(Self {
            name: name.to_owned(),
            prefix,
            writer: Mutex::new(Some(file)),
            reader: Mutex::new(Some(BufReader::new(reader))),
        })
    }

    /// The device's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Reports something that answers no command.
    pub(crate) fn report(&self, report: Report) {
        self.answer(None, report);
    }

    /// Reports something about the command with this id.
    pub(crate) fn answer(&self, id: Option<u64>, report: Report) {
        self.write_line(
            &Event {
                t: uptime_ms(),
                id,
                report,
            }
            .to_line(),
        );
    }

    /// Writes a line that ends with a newline.
    pub(crate) fn write_line(&self, line: &str) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writer.as_mut() {
            // That the host cannot be told cannot be told to the host either.
            let _ = writer.write_all(format!("{}{line}", self.prefix).as_bytes());
        }
    }

    /// Waits for a line from the host. Too long or broken ones are skipped and reported.
    pub(crate) fn read_line(&self) -> String {
        loop {
            match self.try_read() {
                Some(Ok(line)) => return line,
                Some(Err(message)) => self.report(Report::Error { message }),
                // No program is connected at the other end at the moment.
                None => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn try_read(&self) -> Option<Result<String, String>> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        read_bounded(reader.as_mut()?)
    }
}

/// A line of at most [`MAX_LINE`] bytes; `None` at the end or on an error.
fn read_bounded(reader: &mut impl BufRead) -> Option<Result<String, String>> {
    let mut bytes = Vec::new();
    let limit = MAX_LINE as u64;
    let count = reader.by_ref().take(limit).read_until(b'\n', &mut bytes).ok()?;
    if count == 0 {
        return None;
    }
    if bytes.last() != Some(&b'\n') && count == MAX_LINE {
        reader.skip_until(b'\n').ok()?;
        return Some(Err(format!("a line longer than {MAX_LINE} bytes was dropped")));
    }
    Some(String::from_utf8(bytes).map_err(|_| "a line that is not UTF-8 was dropped".to_owned()))
}

/// A virtio port that bears the agent's name.
fn named_port() -> Option<String> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let is_ours =
        |path: &Path| fs::read_to_string(path.join("name")).is_ok_and(|name| name.trim() == PORT_NAME);
    let port = ports.flatten().find(|port| is_ours(&port.path()))?;
    port.file_name().into_string().ok()
}

/// True if there is a virtio console whose ports are worth waiting for.
fn console_device() -> bool {
    let Ok(devices) = fs::read_dir("/sys/bus/virtio/devices") else {
        return false;
    };
    let kind = |path: &Path| fs::read_to_string(path.join("device")).unwrap_or_default();
    devices
        .flatten()
        .any(|device| kind(&device.path()).trim() == VIRTIO_CONSOLE)
}

/// Without this a terminal would echo the host's commands and turn each newline into two bytes. The human console
/// keeps its output processing.
fn make_raw(file: &File, wholly: bool) {
    // A port is no terminal: then there is nothing to do.
    let Ok(mut settings) = tcgetattr(file) else { return };
    let output = settings.output_flags;
    cfmakeraw(&mut settings);
    if !wholly {
        settings.output_flags = output;
    }
    let _ = tcsetattr(file, SetArg::TCSANOW, &settings);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_long_and_broken_lines_are_dropped_one_by_one() {
        let mut bytes = vec![b'x'; MAX_LINE + 10];
        bytes.extend(b"\nshort\n\xff\nend");
        let mut reader = BufReader::new(&bytes[..]);
        assert!(read_bounded(&mut reader).unwrap().unwrap_err().contains("longer"));
        assert_eq!(read_bounded(&mut reader).unwrap().unwrap(), "short\n");
        assert!(read_bounded(&mut reader).unwrap().unwrap_err().contains("UTF-8"));
        assert_eq!(read_bounded(&mut reader).unwrap().unwrap(), "end");
        assert!(read_bounded(&mut reader).is_none());
    }
}
