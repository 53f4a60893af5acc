//! Debian guests with memory on both sides of the hole for registers, and of an odd number of MiB, under a manager.

use levy_protocol::control::Request;
use levy_tests::Lab;

const MIB: u64 = 1 << 20;

/// Memory filled with a few contents: a kernel takes it from above the hole first.
const FILLED_MIB: u64 = 48;

#[test]
fn guests_above_the_hole_and_of_an_odd_size_are_managed_as_others_are() {
    let Some(lab) = Lab::or_skip() else { return };
    let manager = lab.manager(1500);
    // What is not its minimum must fit into swap space, of which the nested host has little over 3 GiB.
    let sizes = [(3500, 1000), (513, 128)];
    let mut guests = sizes.map(|(mib, min)| {
        let guest = lab.guest(&format!("size-{mib}")).memory_mib(mib).min_mib(min);
        guest.managed_by(&manager).start()
    });
    for guest in &mut guests {
        guest.ready();
        guest.run(&format!("fill mib={FILLED_MIB} distinct=16 seconds=3600"));
    }
    for ((mib, _), guest) in sizes.iter().zip(&guests) {
        // Half of what is filled at least: the rest may be on its way.
        let pages = FILLED_MIB * MIB / 4096 / 2;
        let stats = guest.vmm_until("sharing", &Request::Stats, |stats| {
            stats["pages"]["shared"].as_u64() >= Some(pages)
        });
        println!("{mib} MiB: {:#}", stats["pages"]);
        let view = manager.client().guest(&format!("size-{mib}")).unwrap();
        assert!(view.connected);
        let memory = view.memory;
        let all = [
            memory.private_bytes,
            memory.shared_bytes,
            memory.zero_bytes,
            memory.compressed_bytes,
            memory.swapped_bytes,
            memory.ballooned_bytes,
            memory.empty_bytes,
        ];
        assert_eq!(all.iter().sum::<u64>(), mib * MIB, "{memory:?}");
    }
    assert!(manager.view().free_bytes > Some(0));
    for guest in guests {
        assert_eq!(guest.power_off().status, 0);
    }
}
