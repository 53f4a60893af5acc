//! What each vCPU answers to CPUID: everything KVM supports, with the topology of this guest instead of the host's.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The answers of the vCPU with APIC id `id` in a guest of `cpus` single-thread cores in one package.
pub fn cpuid_of(id: u8, cpus: u8, supported: &CpuId) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        patch(entry, u32::from(id), u32::from(cpus));
    }
    cpuid
}

fn patch(entry: &mut kvm_cpuid_entry2, id: u32, cpus: u32) {
    // Bits of the APIC id that number cores inside the package.
    let core_bits = cpus.next_power_of_two().trailing_zeros();
    match entry.function {
        1 => {
            entry.ebx = entry.ebx & 0xFF00 | id << 24 | cpus.min(255) << 16 | entry.ebx & 0xFF;
            entry.ecx |= HYPERVISOR | TSC_DEADLINE;
        }
        // Intel: cores per package, and threads that share each cache.
        4 => entry.eax = entry.eax & 0x0000_3FFF | (cpus - 1).min(63) << 26,
        0xB | 0x1F => {
            let (shift, threads, level) = match entry.index {
                0 => (0, 1, LEVEL_SMT),
                1 => (core_bits, cpus, LEVEL_CORE),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = threads;
            entry.ecx = level << 8 | entry.index;
            entry.edx = id;
        }
        // AMD: number of cores and the width of the core id.
        0x8000_0008 => entry.ecx = entry.ecx & !0xF0FF | core_bits << 12 | (cpus - 1),
        0x8000_001E => {
            entry.eax = id;
            entry.ebx = id & 0xFF;
            entry.ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ebx: 0x00FF_08AA,
            ..Default::default()
        }
    }

    #[test]
    fn every_vcpu_sees_its_own_id_and_the_guests_topology() {
        let host =
            CpuId::from_entries(&[entry(1, 0), entry(0xB, 0), entry(0xB, 1), entry(0x8000_0008, 0)]).unwrap();
        let third = cpuid_of(2, 4, &host);
        let [basic, smt, core, amd] = third.as_slice() else {
            panic!("four leaves")
        };
        assert_eq!(basic.ebx, 0x0204_08AA);
        assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (0, 1, LEVEL_SMT << 8, 2));
        assert_eq!(
            (core.eax, core.ebx, core.ecx, core.edx),
            (2, 4, LEVEL_CORE << 8 | 1, 2)
        );
        assert_eq!(amd.ecx, 2 << 12 | 3);
    }
}
