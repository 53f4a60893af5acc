//! Builds and caches guest kernels, initramfs and disks from Debian packages.
