//! The kinds of threads in a VMM process.

/// What a thread does, and so which system calls it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Watches the guest and answers requests.
    Main,
    /// Runs guest code.
    Vcpu,
    /// virtio-blk.
    Disk,
    /// virtio-net.
    Net,
    /// virtio-rng.
    Entropy,
    /// virtio-balloon.
    Balloon,
    /// virtio-console: the agent's channel.
    Console,
    /// Resolves page faults.
    FaultHandler,
    /// Reads swapped pages.
    SwapIns,
    /// Scans, merges, and talks to the manager about pages.
    Scanner,
    /// Talks to the manager about the guest, compresses and swaps.
    ManagerClient,
    /// Keeps the guest within its limit between two orders.
    LimitController,
    /// Takes requests from the control socket, one more thread for each client.
    Control,
    /// Writes the serial console's output, of which a file keeps the newest.
    Serial,
    /// Writes log lines, reads the keyboard, waits for signals.
    Stream,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Main,
        Self::Vcpu,
        Self::Disk,
        Self::Net,
        Self::Entropy,
        Self::Balloon,
        Self::Console,
        Self::FaultHandler,
        Self::SwapIns,
        Self::Scanner,
        Self::ManagerClient,
        Self::LimitController,
        Self::Control,
        Self::Serial,
        Self::Stream,
    ];

    /// Its name in messages and in the documentation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vcpu",
            Self::Disk => "disk",
            Self::Net => "net",
            Self::Entropy => "entropy",
            Self::Balloon => "balloon",
            Self::Console => "console",
            Self::FaultHandler => "fault-handler",
            Self::SwapIns => "swap-ins",
            Self::Scanner => "scanner",
            Self::ManagerClient => "manager-client",
            Self::LimitController => "limit-control",
            Self::Control => "control",
            Self::Serial => "serial",
            Self::Stream => "stream",
        }
    }
}
