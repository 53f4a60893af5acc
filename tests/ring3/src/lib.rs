//! A flat 64-bit guest that runs in ring 3 on /dev/kvm, for tests and benches.
