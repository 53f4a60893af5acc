//! What a fleet's processes hold of the machine, and where they are, by the kernel's word.

use std::collections::BTreeMap;
use std::os::linux::fs::MetadataExt;

use levy_protocol::process_memory::Held;

/// Bytes of anonymous memory and page tables of a process; none once it is gone.
pub(crate) fn held(pid: u32) -> u64 {
    Held::of(pid).map_or(0, Held::total)
}

/// Bytes that all pools of which one of the processes has the file occupy, each pool once.
pub(crate) fn pools(pids: impl IntoIterator<Item = u32>) -> u64 {
    let mut found = BTreeMap::new();
    for pid in pids {
        let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for file in files.flatten() {
            let is_pool = std::fs::read_link(file.path())
                .is_ok_and(|target| target.to_string_lossy().contains("memfd:levy-pool"));
            if let Some(meta) = is_pool.then(|| std::fs::metadata(file.path()).ok()).flatten() {
                found.insert(meta.st_ino(), meta.st_blocks() * 512);
            }
        }
    }
    found.into_values().sum()
}

/// Open files of a process.
pub(crate) fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Threads of a process.
pub(crate) fn threads(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// What each thread of a process waits for: its name, the kernel's function, and the system call's number and arguments.
pub(crate) fn whereabouts(pid: u32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let lines = tasks.into_iter().flatten().flatten().map(|task| {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let [name, function, call] = ["comm", "wchan", "syscall"].map(read);
        format!("  {} in {} ({})", name.trim(), function.trim(), call.trim())
    });
    lines.collect::<Vec<_>>().join("\n")
}
