//! The guest's kernel command line. Its words are measured where there is a TEE, so they depend on
//! the spec and the facts only, and their order is fixed.

use crate::accel::Resolved;
use crate::growth;
use crate::qemu::Facts;
use crate::spec::{CheckedSpec, Machine, SpecError, VmSpec, check_kernel_params};

/// More than all words of this module together, to check a spec's parameters against.
pub(crate) const LONGEST_OWN_PARAMS: usize = 352;

/// What every guest gets. A panic ends the VM, and a reboot goes the one way that works on a
/// microvm too (a triple fault); QEMU turns both into its exit.
const ALWAYS: &[&str] = &["console=ttyS0", "reboot=t", "panic=-1", "quiet"];

/// What a guest under emulation gets besides, because each costs a start of a second or more there:
/// self-tests of ciphers, patching of code (which flushes translated blocks) for mitigations that
/// mean nothing in an emulator, and tracing of probes.
const EMULATED: &[&str] = &[
    "cryptomgr.notests",
    "no_timer_check",
    "noreplace-smp",
    "mitigations=off",
    "initcall_blacklist=init_kprobe_trace",
];

/// The whole kernel command line.
#[must_use]
pub fn command_line(spec: &CheckedSpec, facts: &Facts) -> String {
    words(spec.spec(), facts.accel, facts.tsc_khz, facts.host_port)
}

/// The one of a confidential guest, which is the same on every host and in every pod of one configuration.
#[must_use]
pub fn measured_command_line(spec: &CheckedSpec) -> String {
    measured(spec.spec())
}

/// The same of a VM that another host launches, so that its files need not be here.
///
/// # Errors
/// A word that no launch has, or too many of them.
pub fn predicted_command_line(spec: &VmSpec) -> Result<String, SpecError> {
    check_kernel_params(spec)?;
    Ok(measured(spec))
}

fn measured(spec: &VmSpec) -> String {
    words(spec, Resolved::Kvm, None, spec.host_port)
}

fn words(spec: &VmSpec, accel: Resolved, tsc_khz: Option<u32>, host_port: u32) -> String {
    let mut words: Vec<String> = ALWAYS.iter().map(ToString::to_string).collect();
    if accel == Resolved::Tcg {
        words.extend(EMULATED.iter().map(ToString::to_string));
        if let Some(khz) = tsc_khz {
            // On a microvm the kernel has nothing to calibrate its timers against and hangs.
            words.push(format!("tsc_early_khz={khz}"));
            // The emulated processor does not promise a constant counter, so with two of them the
            // kernel would fall back to a clock of 4 ms. All read the host's one counter.
            words.push("tsc=reliable".to_owned());
        }
    }
    words.extend(growth::kernel_words(spec, accel));
    if spec.machine == Machine::Microvm {
        // There is no PCI bus, and the kernel complains about that even when quiet.
        words.push("pci=off".to_owned());
    }
    words.extend(spec.kernel_params.iter().cloned());
    if host_port != spec.host_port {
        words.push(format!("cloister.host_port={host_port}"));
    }
    words.join(" ")
}
