//! Loopback and the first network card, by the tools of the initramfs or the disk.

use std::process::{Command, Stdio};

use super::children;
use super::cmdline::Cmdline;

/// Brings `lo` up, and `eth0` with the address of the kernel's command line; returns what went wrong.
pub(crate) fn up(cmdline: &Cmdline) -> Vec<String> {
    let mut steps = vec!["link set lo up".to_owned()];
    if let Some(address) = &cmdline.address {
        steps.push("link set eth0 up".to_owned());
        steps.push(format!("addr add {address} dev eth0"));
    }
    if let Some(gateway) = &cmdline.gateway {
        steps.push(format!("route add default via {gateway}"));
    }
    steps.iter().filter_map(|step| ip(step).err()).collect()
}

fn ip(step: &str) -> Result<(), String> {
    let mut failure = String::new();
    for (program, first) in [("/bin/busybox", Some("ip")), ("/sbin/ip", None)] {
        let mut command = Command::new(program);
        command
            .args(first)
            .args(step.split(' '))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        match children::output(command.stderr(Stdio::piped())) {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => failure = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) if failure.is_empty() => failure = format!("cannot start {program}: {error}"),
            Err(_) => {}
        }
    }
    Err(format!("ip {step}: {failure}"))
}
