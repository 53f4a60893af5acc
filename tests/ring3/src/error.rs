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
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Error {
    /// No guest can run here.
    #[error("no guest can run on this machine")]
    Unavailable(#[from] Unavailable),
    /// The operating system refused memory.
    #[error("cannot map {bytes} bytes of {what}")]
    Map {
        what: &'static str,
        bytes: usize,
        #[source]
        source: std::io::Error,
    },
    /// The memory or the work given makes no guest.
    #[error("{0}")]
    Config(String),
    /// KVM refused a step of building the guest.
    #[error("KVM refused to {step}")]
    Kvm {
        step: &'static str,
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A thread or its signal could not be set up.
    #[error("cannot {step}")]
    Thread {
        step: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// A vCPU left the guest for a reason that no program has.
    #[error("vCPU {vcpu} stopped at rip {rip:#x}: {reason}")]
    Exit { vcpu: usize, rip: u64, reason: String },
    /// The guest found pages that are not what it wrote.
    #[error("vCPU {vcpu} found {errors} wrong pages, the first: {first}")]
    Corrupt {
        vcpu: usize,
        errors: u64,
        first: Mismatch,
    },
    /// A vCPU did not reach the state that was waited for.
    #[error("vCPU {vcpu} did not {what} within {limit:?}; is its memory's fault handler alive?")]
    Deadline {
        vcpu: usize,
        what: &'static str,
        limit: Duration,
    },
}
