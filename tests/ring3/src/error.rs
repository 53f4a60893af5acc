//! What can go wrong with a guest, and why a machine may not be able to run one.

use std::time::Duration;

use crate::Mismatch;

/// Why no guest can run on this machine.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// /dev/kvm is missing or cannot be opened.
    #[error("cannot open /dev/kvm: load kvm-intel, kvm-amd or a software KVM and check its permissions")]
    Open(#[source] kvm_ioctls::Error),
    /// The KVM of this machine lacks something this crate needs.
    #[error("this machine's KVM lacks {0}")]
    Lacks(&'static str),
}

/// A guest that could not be built or did not run as it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No guest can run here.
    #[error("no guest can run on this machine")]
    Unavailable(#[from] Unavailable),
    /// The operating system refused memory.
    #[error("cannot map {bytes} bytes of {what}")]
    Map {
        /// What the memory was for.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
        /// The reason given.
        #[source]
        source: std::io::Error,
    },
    /// The memory or the work given makes no guest.
    #[error("{0}")]
    Config(String),
    /// KVM refused a step of building the guest.
    #[error("KVM refused to {step}")]
    Kvm {
        /// What was tried.
        step: &'static str,
        /// The reason given.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A thread or its signal could not be set up.
    #[error("cannot {step}")]
    Thread {
        /// What was tried.
        step: &'static str,
        /// The reason given.
        #[source]
        source: std::io::Error,
    },
    /// A vCPU left the guest for a reason that no program has.
    #[error("vCPU {vcpu} stopped at rip {rip:#x}: {reason}")]
    Exit {
        /// Which vCPU.
        vcpu: usize,
        /// Where the guest was.
        rip: u64,
        /// The exit as KVM names it.
        reason: String,
    },
    /// The guest found pages that are not what it wrote.
    #[error("vCPU {vcpu} found {errors} wrong pages, the first: {first}")]
    Corrupt {
        /// Which vCPU.
        vcpu: usize,
        /// How many wrong pages it found.
        errors: u64,
        /// The first of them.
        first: Mismatch,
    },
    /// A vCPU did not reach the state that was waited for.
    #[error("vCPU {vcpu} did not {what} within {limit:?}; is its memory's fault handler alive?")]
    Deadline {
        /// Which vCPU.
        vcpu: usize,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
}
