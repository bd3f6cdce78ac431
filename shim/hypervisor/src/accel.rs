//! Which accelerator runs the guest.
//!
//! That `/dev/kvm` opens is not enough: a nested hypervisor may offer the device and then fail at
//! the first model-specific register, or run a kernel forever. Where it cannot run a stock kernel,
//! the processor's virtualization flag is hidden from us too, so both are asked for.

use std::fs::{self, OpenOptions};
use std::path::Path;

use thiserror::Error;
use tracing::info;

use crate::spec::Accel;

/// An accelerator that was found to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// Hardware virtualization.
    Kvm,
    /// Emulation.
    Tcg,
}

/// Why KVM cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KvmUnusable {
    /// The device does not open.
    #[error("/dev/kvm does not open: {reason}")]
    Device {
        /// What the kernel said.
        reason: String,
    },
    /// The processor has no virtualization extension.
    #[error(
        "/dev/kvm opens, but /proc/cpuinfo has neither vmx nor svm: nested virtualization is off"
    )]
    Processor,
}

/// Chooses the accelerator, and says which in one log line.
///
/// # Errors
/// [`KvmUnusable`] where KVM was asked for by name and cannot be used.
pub fn resolve(wanted: Accel) -> Result<Resolved, KvmUnusable> {
    let probe = || probe_kvm(Path::new("/dev/kvm"), Path::new("/proc/cpuinfo"));
    let (resolved, reason) = decide(wanted, probe)?;
    info!(accel = ?resolved, reason, "accelerator chosen");
    Ok(resolved)
}

fn decide(
    wanted: Accel,
    probe: impl FnOnce() -> Result<(), KvmUnusable>,
) -> Result<(Resolved, String), KvmUnusable> {
    match wanted {
        Accel::Tcg => Ok((Resolved::Tcg, "asked for by name".to_owned())),
        Accel::Kvm => probe().map(|()| (Resolved::Kvm, "asked for by name".to_owned())),
        Accel::Auto => Ok(match probe() {
            Ok(()) => (
                Resolved::Kvm,
                "/dev/kvm opens and the processor has the extension".to_owned(),
            ),
            Err(unusable) => (Resolved::Tcg, unusable.to_string()),
        }),
    }
}

fn probe_kvm(device: &Path, cpuinfo: &Path) -> Result<(), KvmUnusable> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .map_err(|error| KvmUnusable::Device {
            reason: error.to_string(),
        })?;
    let flags = fs::read_to_string(cpuinfo).unwrap_or_default();
    if has_extension(&flags) {
        Ok(())
    } else {
        Err(KvmUnusable::Processor)
    }
}

fn has_extension(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_falls_to_emulation_with_the_reason() {
        let (resolved, reason) = decide(Accel::Auto, || Err(KvmUnusable::Processor)).unwrap();
        assert_eq!(resolved, Resolved::Tcg);
        assert!(reason.contains("neither vmx nor svm"));
    }

    #[test]
    fn kvm_by_name_never_falls_back() {
        assert_eq!(
            decide(Accel::Kvm, || Err(KvmUnusable::Processor)),
            Err(KvmUnusable::Processor)
        );
    }

    #[test]
    fn emulation_by_name_probes_nothing() {
        let (resolved, _) = decide(Accel::Tcg, || unreachable!("probed")).unwrap();
        assert_eq!(resolved, Resolved::Tcg);
    }

    #[test]
    fn a_missing_device_is_told_from_a_missing_extension() {
        let dir = tempfile::tempdir().unwrap();
        let (device, cpuinfo) = (dir.path().join("kvm"), dir.path().join("cpuinfo"));
        std::fs::write(&cpuinfo, "flags\t\t: fpu svmx tsc\n").unwrap();
        assert!(matches!(
            probe_kvm(&device, &cpuinfo),
            Err(KvmUnusable::Device { .. })
        ));
        std::fs::write(&device, "").unwrap();
        assert_eq!(probe_kvm(&device, &cpuinfo), Err(KvmUnusable::Processor));
        std::fs::write(&cpuinfo, "flags\t\t: fpu svm tsc\n").unwrap();
        assert_eq!(probe_kvm(&device, &cpuinfo), Ok(()));
    }
}
