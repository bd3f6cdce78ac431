//! How large a pod's VM is: what the configuration gives to every VM, and what the pod's limits
//! add to it. VMs do not grow later.

use std::collections::BTreeMap;

use super::oci::Spec;
use crate::config::Vm;

/// The pod's limits as containerd (from 1.6 on) sums them up for the sandbox.
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

const MIB: u64 = 1024 * 1024;
const MILLI: u64 = 1000;

/// The least memory of a guest, in MiB: kernel, agent and what they unpack, whatever a pod's limits say.
const MIN_GUEST_MIB: u32 = 256;

/// Sets the size of `vm` for the pod that `spec` opens.
pub fn fit(vm: &mut Vm, spec: &Spec) {
    if let Some(limit) = cpu_limit(spec) {
        let cpus = match vm.overhead_millicpus {
            // As Kata's Rust runtime sizes VMs: what the guest needs itself, and the limit.
            Some(overhead) => limit.saturating_add(overhead.into()).div_ceil(MILLI),
            None => limit.div_ceil(MILLI).max(vm.vcpus.into()),
        };
        vm.vcpus = u32::try_from(cpus).unwrap_or(u32::MAX).max(1);
    }
    if let Some(bytes) = memory_limit(spec) {
        let mib = u32::try_from(bytes.div_ceil(MIB)).unwrap_or(u32::MAX);
        vm.memory_mib = match vm.overhead_mib {
            Some(overhead) => overhead.saturating_add(mib).max(MIN_GUEST_MIB),
            None => vm.memory_mib.saturating_add(mib),
        };
    }
    let most = vm.max_vcpus.unwrap_or(hypervisor::spec::MAX_VCPUS);
    vm.vcpus = vm.vcpus.min(most).min(hypervisor::spec::MAX_VCPUS);
    let most = vm
        .max_memory_mib
        .unwrap_or(hypervisor::spec::MAX_MEMORY_MIB);
    vm.memory_mib = vm
        .memory_mib
        .min(most)
        .min(hypervisor::spec::MAX_MEMORY_MIB);
}

/// Thousandths of processors that the limits ask for.
fn cpu_limit(spec: &Spec) -> Option<u64> {
    let cpu = resources(spec).and_then(|resources| resources.cpu.as_ref());
    let quota = number(&spec.annotations, CPU_QUOTA)
        .or_else(|| cpu?.quota.and_then(|q| u64::try_from(q).ok()));
    let period = number(&spec.annotations, CPU_PERIOD).or_else(|| cpu?.period);
    let (quota, period) = (quota.filter(|q| *q > 0)?, period.filter(|p| *p > 0)?);
    Some(quota.saturating_mul(MILLI).div_ceil(period))
}

/// Bytes that the limits ask for.
fn memory_limit(spec: &Spec) -> Option<u64> {
    let memory = resources(spec).and_then(|resources| resources.memory.as_ref());
    let own = || memory?.limit.and_then(|limit| u64::try_from(limit).ok());
    number(&spec.annotations, MEMORY)
        .or_else(own)
        .filter(|bytes| *bytes > 0)
}

fn resources(spec: &Spec) -> Option<&super::oci::Resources> {
    spec.linux.as_ref()?.resources.as_ref()
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
}
