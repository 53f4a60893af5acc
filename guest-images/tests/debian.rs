//! Real packages from the archive that this machine's apt uses.

use std::fs;

use guest_images::debian::{Archive, Depth, Prefer, Request};
use guest_images::{AGENT, Boot, Cache, Flavour, Kernel};

fn listing(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn packages_are_fetched_verified_unpacked_and_cached() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path())
        .unwrap()
        .on_progress(|line| eprintln!("{line}"));
    let archive = Archive::open(&cache).unwrap();
    let busybox = Request {
        name: "busybox",
        packages: &["busybox-static"],
        prefer: Prefer::Stable,
        depth: Depth::NamedOnly,
    };
    let tree = archive.tree(&busybox).unwrap();
    assert!(tree.join("bin/busybox").metadata().unwrap().len() > 500_000);
    assert_eq!(archive.tree(&busybox).unwrap(), tree);

    // Backports are newer and bring their own dependencies; nothing of this is downloaded here.
    let qemu = |prefer| {
        let request = Request {
            name: "qemu",
            packages: &["qemu-system-x86"],
            prefer,
            depth: Depth::WithDependencies,
        };
        archive.resolve(&request).unwrap()
    };
    let version = |packages: &[guest_images::debian::Package]| {
        let qemu = packages
            .iter()
            .find(|package| package.name == "qemu-system-x86")
            .unwrap();
        qemu.version.clone()
    };
    let (stable, backports) = (qemu(Prefer::Stable), qemu(Prefer::Backports));
    assert!(version(&stable).starts_with("1:7."), "{}", version(&stable));
    assert!(
        version(&backports).starts_with("1:10."),
        "{}",
        version(&backports)
    );
    assert!(backports.iter().any(|package| package.name == "libc6"));

    let missing = Request {
        packages: &["levy-no-such-package"],
        ..busybox
    };
    let error = archive.tree(&missing).unwrap_err().to_string();
    assert!(error.contains("levy-no-such-package"), "{error}");
    assert_eq!(
        listing(&archive.cache().root().join("busybox")).len(),
        3,
        "one entry, latest and the lock"
    );
    the_cloud_kernel_comes_with_image_and_modules(&archive);
    a_boot_pair_is_built_once_and_always_the_same(&archive);
}

fn the_cloud_kernel_comes_with_image_and_modules(archive: &Archive) {
    assert_eq!(Kernel::latest(archive.cache(), Flavour::Cloud612), None);
    let kernel = Kernel::fetch(archive, Flavour::Cloud612).unwrap();
    assert!(kernel.release().starts_with("6.12."), "{}", kernel.release());
    assert!(kernel.modules().join("modules.builtin").exists());
    // "HdrS" at 0x202: a bzImage.
    assert_eq!(&fs::read(kernel.image()).unwrap()[0x202..0x206], b"HdrS");
    assert_eq!(
        Kernel::latest(archive.cache(), Flavour::Cloud612).as_ref(),
        Some(&kernel)
    );
}

fn a_boot_pair_is_built_once_and_always_the_same(archive: &Archive) {
    let build = || Boot::build(archive, Flavour::Cloud612).unwrap();
    let boot = build();
    let written = || fs::metadata(boot.initramfs()).unwrap().modified().unwrap();
    let vmlinux = || fs::read(boot.vmlinux().expect("the kernel was unpacked")).unwrap();
    let unpacked = vmlinux();
    // An executable for x86-64, as `levy vmm` takes it.
    assert_eq!(&unpacked[..6], b"\x7FELF\x02\x01");
    assert_eq!(unpacked[16..20], [2, 0, 62, 0]);
    let (first, when) = (fs::read(boot.initramfs()).unwrap(), written());
    assert_eq!(build(), boot);
    assert_eq!(written(), when, "built again");
    assert_eq!(
        Boot::latest(archive.cache(), Flavour::Cloud612).as_ref(),
        Some(&boot)
    );

    fs::remove_dir_all(boot.dir()).unwrap();
    assert_eq!(build(), boot);
    assert!(fs::read(boot.initramfs()).unwrap() == first, "two builds differ");
    assert!(vmlinux() == unpacked, "two builds differ");
    let holds = |needle: &[u8]| first.windows(needle.len()).any(|window| window == needle);
    assert!(holds(&AGENT[..4096]) && holds(b"-virtio_balloon.ko\0") && holds(b"-virtio_mmio.ko\0"));
}
