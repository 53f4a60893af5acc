//! Guests that share a disk image do not see each other's writes, and the image never changes.

use std::fs;

use levy_tests::Lab;

#[test]
fn overlays_keep_guests_apart() {
    let Some(lab) = Lab::with_disk_or_skip() else {
        return;
    };
    let before = fs::metadata(lab.disk()).unwrap().modified().unwrap();
    let mut one = lab.guest("one").on_disk().start();
    let mut other = lab.guest("other").on_disk().start();
    one.ready();
    other.ready();
    one.exec(&["sh", "-c", "echo of-one >/var/tmp/mark; sync"]);
    other.exec(&[
        "sh",
        "-c",
        "echo of-other >/var/tmp/mark; sync; echo 3 >/proc/sys/vm/drop_caches",
    ]);
    one.exec(&["sh", "-c", "echo 3 >/proc/sys/vm/drop_caches"]);
    assert_eq!(one.exec(&["cat", "/var/tmp/mark"]), "of-one\n");
    assert_eq!(other.exec(&["cat", "/var/tmp/mark"]), "of-other\n");
    assert_eq!((one.power_off().status, other.power_off().status), (0, 0));
    assert_eq!(fs::metadata(lab.disk()).unwrap().modified().unwrap(), before);
    let mut third = lab.guest("third").on_disk().start();
    third.ready();
    let marks = third.exec(&["sh", "-c", "ls /var/tmp | grep -c mark || true"]);
    assert_eq!(marks, "0\n", "a layer outlived its guest");
    assert_eq!(third.power_off().status, 0);
}
