//! What the calling thread has cost.
#![allow(unsafe_code)]
// UNSAFETY: clock_gettime fills a structure of ours.

/// CPU time that the calling thread has used, user and system.
pub(crate) fn thread_cpu() -> std::time::Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    std::time::Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
