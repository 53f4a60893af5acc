//! Guests as rows, with esxtop's column names.

use std::fmt::Write;

use levy_protocol::api::GuestView;

/// A column: its name, and its figure in bytes; none where there is none yet.
type Column = (&'static str, fn(&GuestView) -> Option<u64>);

/// All sizes are MiB.
const COLUMNS: [Column; 12] = [
    ("MEMSZ", |guest| Some(guest.limits.max_bytes)),
    ("GRANT", |guest| Some(granted(guest))),
    ("TGT", |guest| {
        guest.target.as_ref().map(|target| target.size_bytes)
    }),
    ("ACTV", |guest| Some(guest.activity.active_bytes)),
    ("MCTLSZ", |guest| {
        guest.balloon.map(|balloon| balloon.actual_bytes)
    }),
    ("MCTLTGT", |guest| {
        guest.balloon.map(|balloon| balloon.asked_bytes)
    }),
    ("SHRD", |guest| {
        Some(guest.memory.shared_bytes + guest.memory.zero_bytes)
    }),
    ("ZERO", |guest| Some(guest.memory.zero_bytes)),
    ("ZIP", |guest| Some(guest.memory.compressed_bytes)),
    ("SWCUR", |guest| Some(guest.memory.swapped_bytes)),
    ("OVHD", |guest| Some(guest.overhead_bytes)),
    ("HELD", |guest| Some(guest.held_bytes)),
];

/// What the columns mean, for `--help`.
pub(super) const LEGEND: &str = "\
Columns, all MiB:
  MEMSZ   configured size                      SHRD   backed by common copies or the zero page
  GRANT   in memory: private, shared, zero     ZERO   of that, the zero page
  TGT     what it should have of that          ZIP    compressed (as before compression)
  ACTV    estimated to be in use               SWCUR  in the swap file
  MCTLSZ  in its balloon                       OVHD   its process beside the guest's memory
  MCTLTGT asked of its balloon                 HELD   what it costs the budget, by the kernel's count
GROUP, where there are groups, is what the guest claims memory with.";

/// Guest memory that is backed by any page of the machine.
fn granted(guest: &GuestView) -> u64 {
    let memory = &guest.memory;
    memory.private_bytes + memory.shared_bytes + memory.zero_bytes
}

/// The table of `guests`.
pub(super) fn of(guests: &[GuestView]) -> String {
    let wide = guests
        .iter()
        .map(|guest| guest.name.len())
        .max()
        .unwrap_or(0)
        .max(5);
    let groups = guests.iter().filter_map(|guest| guest.group.as_ref());
    // Where no guest is in a group, the column would only take room.
    let group_wide = groups.map(|group| group.len().max(5)).max();
    let group = |name: &str| group_wide.map_or(String::new(), |wide| format!(" {name:<wide$}"));
    let mut text = format!("{:<wide$}{} {:<9}", "NAME", group("GROUP"), "STATE");
    for (name, _) in COLUMNS {
        let _ = write!(text, " {name:>7}");
    }
    text.push('\n');
    for guest in guests {
        let member_of = group(guest.group.as_deref().unwrap_or("-"));
        let _ = write!(text, "{:<wide$}{member_of} {:<9}", guest.name, state(guest));
        for (_, figure) in COLUMNS {
            let shown = figure(guest).map_or("-".to_owned(), mib);
            let _ = write!(text, " {shown:>7}");
        }
        text.push('\n');
    }
    text
}

fn state(guest: &GuestView) -> &'static str {
    match guest.connected {
        true => guest.phase.name(),
        false => "cut off",
    }
}

/// Bytes as MiB, one place behind the point.
pub(super) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}
