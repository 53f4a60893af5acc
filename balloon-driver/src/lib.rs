//! A complete virtio-balloon device backend, driver half and controller for rust-vmm projects.
