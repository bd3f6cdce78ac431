//! How large a pod's VM is: what the configuration gives to every VM, and what the limits of its pod, and
//! later those of its containers, add to it. It is always reckoned from those containers that there are,
//! so one that is made and removed a thousand times counts once.

use std::collections::BTreeMap;

use hypervisor::spec::{MAX_MEMORY_MIB, MAX_VCPUS};
use hypervisor::{Growth, Size};

use super::oci::{Resources, Spec};
use crate::config::Vm;

/// The pod's limits as containerd (from 1.6 on) sums them up for the sandbox.
pub(super) const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
pub(super) const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
pub(super) const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

const MIB: u64 = 1024 * 1024;
const MILLI: u64 = 1000;
/// Processors that a VM may get beside its first ones where nothing says more: the guest's kernel keeps a
/// quarter of a MiB for each that may come.
const SPARE_VCPUS: u32 = 7;
/// The kernel's period for a quota, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// The least memory of a guest, in MiB: kernel, agent and what they unpack, whatever a pod's limits say.
const MIN_GUEST_MIB: u32 = 256;

/// What containers may use at most; zero where nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a processor.
    pub millicpus: u64,
    /// Bytes of memory.
    pub bytes: u64,
    /// Bytes in huge pages, which come out of the memory as well.
    pub huge: u64,
}

impl Limits {
    /// Those that a specification has for its own container.
    #[must_use]
    pub fn of(resources: Option<&Resources>) -> Self {
        let cpu = resources.and_then(|resources| resources.cpu.as_ref());
        let quota = cpu.and_then(|cpu| u64::try_from(cpu.quota?).ok());
        let memory = resources.and_then(|resources| resources.memory.as_ref());
        let bytes = memory.and_then(|memory| u64::try_from(memory.limit?).ok());
        let huge = resources.iter().flat_map(|found| &found.hugepage_limits);
        let huge = huge.fold(0_u64, |sum, limit| sum.saturating_add(limit.limit));
        Self {
            millicpus: share(quota, cpu.and_then(|cpu| cpu.period)),
            bytes: bytes.unwrap_or_default(),
            huge,
        }
    }

    /// These, with those that are said in a change; a negative one takes a limit away.
    #[must_use]
    pub fn changed(self, resources: &Resources) -> Self {
        let new = Self::of(Some(resources));
        let says_cpu = resources.cpu.as_ref().and_then(|cpu| cpu.quota);
        let says_memory = resources.memory.as_ref().and_then(|memory| memory.limit);
        let is_said = |value: Option<i64>| value.is_some_and(|value| value != 0);
        Self {
            millicpus: match is_said(says_cpu) {
                true => new.millicpus,
                false => self.millicpus,
            },
            bytes: match is_said(says_memory) {
                true => new.bytes,
                false => self.bytes,
            },
            // Pages are promised for as long as the container is there.
            huge: self.huge,
        }
    }

    /// Those of several containers together.
    #[must_use]
    pub fn sum(all: impl Iterator<Item = Self>) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            millicpus: sum.millicpus.saturating_add(one.millicpus),
            bytes: sum.bytes.saturating_add(one.bytes),
            huge: sum.huge.saturating_add(one.huge),
        })
    }
}

/// Sets the size of `vm` for the pod that `spec` opens.
pub fn fit(vm: &mut Vm, spec: &Spec) {
    let needed = needed(vm, of_pod(spec));
    (vm.vcpus, vm.memory_mib) = (needed.vcpus, needed.memory_mib);
}

/// The size of a VM for containers with these limits.
#[must_use]
pub fn needed(vm: &Vm, limits: Limits) -> Size {
    let (mut vcpus, mut memory_mib) = (vm.vcpus, vm.memory_mib);
    if limits.millicpus > 0 {
        let cpus = match vm.overhead_millicpus {
            // As Kata's Rust runtime sizes VMs: what the guest needs itself, and the limit.
            Some(overhead) => limits
                .millicpus
                .saturating_add(overhead.into())
                .div_ceil(MILLI),
            None => limits.millicpus.div_ceil(MILLI).max(vm.vcpus.into()),
        };
        vcpus = u32::try_from(cpus).unwrap_or(u32::MAX).max(1);
    }
    let bytes = limits.bytes.saturating_add(limits.huge);
    if bytes > 0 {
        let mib = u32::try_from(bytes.div_ceil(MIB)).unwrap_or(u32::MAX);
        memory_mib = match vm.overhead_mib {
            Some(overhead) => overhead.saturating_add(mib).max(MIN_GUEST_MIB),
            None => memory_mib.saturating_add(mib),
        };
    }
    let most = vm.max_vcpus.unwrap_or(MAX_VCPUS).min(MAX_VCPUS);
    let most_mib = vm.max_memory_mib.unwrap_or(MAX_MEMORY_MIB);
    Size {
        vcpus: vcpus.min(most),
        memory_mib: memory_mib.min(most_mib).min(MAX_MEMORY_MIB),
    }
}

/// How far a VM that was sized may grow: as far as the operator gives, or as the host has.
#[must_use]
pub fn growth(vm: &Vm, host: Size) -> Growth {
    let spare = vm.vcpus.saturating_add(SPARE_VCPUS);
    let most = vm.max_vcpus.unwrap_or(host.vcpus.min(spare)).min(MAX_VCPUS);
    let most_mib = vm.max_memory_mib.unwrap_or(host.memory_mib);
    Growth {
        max_vcpus: most.max(vm.vcpus),
        max_memory_mib: most_mib.min(MAX_MEMORY_MIB).max(vm.memory_mib),
        memory_slots: vm.memory_slots,
    }
}

/// What the host has.
#[must_use]
pub fn of_host() -> Size {
    let vcpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = rustix::system::sysinfo();
    let bytes = info.totalram.saturating_mul(u64::from(info.mem_unit));
    Size {
        vcpus: u32::try_from(vcpus).unwrap_or(u32::MAX),
        memory_mib: u32::try_from(bytes / MIB).unwrap_or(u32::MAX),
    }
}

/// What the limits of a pod ask for, or of a container on its own.
fn of_pod(spec: &Spec) -> Limits {
    let linux = spec.linux.as_ref();
    let own = Limits::of(linux.and_then(|linux| linux.resources.as_ref()));
    let quota = number(&spec.annotations, CPU_QUOTA);
    let millicpus = match quota {
        Some(_) => share(quota, number(&spec.annotations, CPU_PERIOD)),
        None => own.millicpus,
    };
    let bytes = number(&spec.annotations, MEMORY).unwrap_or(own.bytes);
    Limits {
        millicpus,
        bytes,
        huge: own.huge,
    }
}

/// Thousandths of a processor; no period is the kernel's own.
fn share(quota: Option<u64>, period: Option<u64>) -> u64 {
    let quota = quota.unwrap_or_default();
    let period = period.filter(|period| *period > 0);
    quota
        .saturating_mul(MILLI)
        .div_ceil(period.unwrap_or(DEFAULT_PERIOD))
}

/// A number that is above zero; containerd writes -1 and 0 for "no limit".
fn number(annotations: &BTreeMap<String, String>, key: &str) -> Option<u64> {
    annotations
        .get(key)?
        .parse()
        .ok()
        .filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(annotations: &[(&str, &str)]) -> (u32, u32) {
        let vm = Vm {
            vcpus: 1,
            memory_mib: 256,
            ..Vm::default()
        };
        fitted_in(vm, annotations)
    }

    fn fitted_in(mut vm: Vm, annotations: &[(&str, &str)]) -> (u32, u32) {
        let annotations = annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        fit(
            &mut vm,
            &Spec {
                annotations,
                ..Spec::default()
            },
        );
        (vm.vcpus, vm.memory_mib)
    }

    #[test]
    fn without_limits_the_configuration_counts() {
        assert_eq!(fitted(&[]), (1, 256));
        assert_eq!(
            fitted(&[(CPU_QUOTA, "-1"), (CPU_PERIOD, "0"), (MEMORY, "0")]),
            (1, 256)
        );
    }

    #[test]
    fn limits_are_added_and_rounded_up() {
        assert_eq!(
            fitted(&[
                (CPU_QUOTA, "150000"),
                (CPU_PERIOD, "100000"),
                (MEMORY, "1048577")
            ]),
            (2, 258)
        );
    }

    #[test]
    fn absurd_limits_are_capped() {
        let (vcpus, memory) = fitted(&[
            (CPU_QUOTA, "99999999"),
            (CPU_PERIOD, "1"),
            (MEMORY, "18446744073709551615"),
        ]);
        assert_eq!(memory, hypervisor::spec::MAX_MEMORY_MIB);
        assert_eq!(vcpus, hypervisor::spec::MAX_VCPUS);
    }

    #[test]
    fn an_overhead_takes_the_place_of_the_default() {
        let vm = Vm {
            vcpus: 2,
            memory_mib: 2048,
            overhead_millicpus: Some(200),
            overhead_mib: Some(32),
            ..Vm::default()
        };
        let limits = |quota, memory| [(CPU_QUOTA, quota), (CPU_PERIOD, "100000"), (MEMORY, memory)];
        let fitted = |quota, memory| fitted_in(vm.clone(), &limits(quota, memory));
        assert_eq!(fitted("50000", "1073741824"), (1, 1056));
        assert_eq!(fitted("90000", "1073741824"), (2, 1056));
        assert_eq!(fitted("50000", "1048576"), (1, MIN_GUEST_MIB));
        assert_eq!(fitted_in(vm.clone(), &[]), (2, 2048));
    }

    #[test]
    fn no_pod_gets_more_than_the_operator_gives() {
        let vm = Vm {
            max_vcpus: Some(2),
            max_memory_mib: Some(512),
            ..Vm::default()
        };
        let limits = [
            (CPU_QUOTA, "400000"),
            (CPU_PERIOD, "100000"),
            (MEMORY, "4294967296"),
        ];
        assert_eq!(fitted_in(vm, &limits), (2, 512));
    }

    fn resources(text: &str) -> Resources {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_change_says_what_it_changes() {
        let limits = Limits {
            millicpus: 500,
            bytes: 1 << 20,
            huge: 0,
        };
        let memory = resources(r#"{"memory":{"limit":2097152}}"#);
        let changed = limits.changed(&memory);
        assert_eq!((changed.millicpus, changed.bytes), (500, 2 << 20));
        let cpu = resources(r#"{"cpu":{"quota":150000},"memory":{"limit":0}}"#);
        let changed = limits.changed(&cpu);
        assert_eq!((changed.millicpus, changed.bytes), (1500, 1 << 20));
        let none = resources(r#"{"cpu":{"quota":-1,"period":100000},"memory":{"limit":-1}}"#);
        assert_eq!(limits.changed(&none), Limits::default());
        let paged = Limits { huge: 7, ..limits };
        assert_eq!(paged.changed(&memory).huge, 7);
    }

    #[test]
    fn a_vm_is_as_large_as_its_containers_need_however_often_they_came() {
        let vm = Vm {
            vcpus: 1,
            memory_mib: 512,
            ..Vm::default()
        };
        let one = Limits {
            millicpus: 800,
            bytes: 60 << 20,
            huge: 40 << 20,
        };
        let size = |count| {
            let size = needed(&vm, Limits::sum(std::iter::repeat_n(one, count)));
            (size.vcpus, size.memory_mib)
        };
        assert_eq!(size(0), (1, 512));
        assert_eq!(size(1), (1, 612));
        assert_eq!(size(2), (2, 712));
    }

    #[test]
    fn growth_ends_where_the_operator_says_or_the_host() {
        let host = Size {
            vcpus: 4,
            memory_mib: 8192,
        };
        let of = |vm: &Vm| {
            let growth = growth(vm, host);
            (growth.max_vcpus, growth.max_memory_mib)
        };
        let mut vm = Vm {
            vcpus: 1,
            memory_mib: 512,
            ..Vm::default()
        };
        assert_eq!(of(&vm), (4, 8192));
        let large = Size { vcpus: 192, ..host };
        assert_eq!(growth(&vm, large).max_vcpus, 8);
        (vm.max_vcpus, vm.max_memory_mib) = (Some(2), Some(1024));
        assert_eq!(of(&vm), (2, 1024));
        (vm.vcpus, vm.memory_mib) = (8, 2048);
        assert_eq!(of(&vm), (8, 2048));
    }
}
