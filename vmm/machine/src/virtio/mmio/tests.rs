//! The handshake as the registers see it.

use super::*;
use crate::memory::GuestRam;
use crate::virtio::rng::Rng;
use crate::virtio::testing::MEMORY;

const ACKNOWLEDGE: u32 = 1;

fn device() -> Mmio {
    let ram = Arc::new(GuestRam::new(MEMORY).unwrap());
    let plug = Plug::new("rng", Arc::new(Mutex::new(Rng::new().unwrap())), ram).unwrap();
    Mmio::new(Arc::new(plug))
}

fn write(mmio: &Mmio, register: u64, value: u32) {
    mmio.write(register, &value.to_le_bytes());
}

fn read(mmio: &Mmio, register: u64) -> u32 {
    let mut bytes = [0; 4];
    mmio.read(register, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// A driver's way up to FEATURES_OK with `features`; the status it reads then.
fn accept(mmio: &Mmio, features: u64) -> u32 {
    write(mmio, reg::STATUS, 0);
    write(mmio, reg::STATUS, ACKNOWLEDGE);
    write(mmio, reg::STATUS, ACKNOWLEDGE | status::DRIVER);
    for (page, half) in (0..).zip([features as u32, (features >> 32) as u32]) {
        write(mmio, reg::DRIVER_FEATURES_SEL, page);
        write(mmio, reg::DRIVER_FEATURES, half);
    }
    write(
        mmio,
        reg::STATUS,
        ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK,
    );
    read(mmio, reg::STATUS)
}

fn offered(mmio: &Mmio) -> u64 {
    let page = |page| {
        write(mmio, reg::DEVICE_FEATURES_SEL, page);
        u64::from(read(mmio, reg::DEVICE_FEATURES))
    };
    page(0) | page(1) << 32
}

#[test]
fn a_driver_that_accepts_any_feature_that_was_not_offered_reads_no_features_ok() {
    let mmio = device();
    let offered = offered(&mmio);
    for bit in 0..64 {
        let known = offered & 1 << bit != 0;
        let seen = accept(&mmio, offered | 1 << bit);
        assert_eq!(
            seen & status::FEATURES_OK != 0,
            known,
            "bit {bit}: status {seen:#x}"
        );
    }
    let one = 1 << 32;
    assert_ne!(
        accept(&mmio, one) & status::FEATURES_OK,
        0,
        "a driver may take less"
    );
}

#[test]
fn a_driver_whose_features_were_refused_cannot_start_the_device() {
    let mmio = device();
    let wrong = offered(&mmio) | 1 << 5;
    assert_eq!(accept(&mmio, wrong) & status::FEATURES_OK, 0);
    let all = ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK;
    write(&mmio, reg::STATUS, all);
    write(&mmio, reg::STATUS, all | status::FEATURES_OK);
    assert_eq!(read(&mmio, reg::STATUS) & status::FEATURES_OK, 0);
    assert!(!mmio.plug().is_driven());
    assert!(!mmio.plug().interrupt().needs_reset(), "it was not even tried");
}

#[test]
fn features_are_final_once_they_were_accepted() {
    let mmio = device();
    let good = offered(&mmio);
    assert_ne!(accept(&mmio, good) & status::FEATURES_OK, 0);
    write(&mmio, reg::DRIVER_FEATURES_SEL, 0);
    write(&mmio, reg::DRIVER_FEATURES, !0);
    write(
        &mmio,
        reg::STATUS,
        ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK,
    );
    assert_ne!(read(&mmio, reg::STATUS) & status::FEATURES_OK, 0);
    assert!(mmio.plug().is_driven());
}
