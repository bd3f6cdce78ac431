//! The bounds of a `VmSpec`, each of which has its own error.

use std::path::Path;

use super::{
    MAX_DISKS, MAX_KERNEL_CMDLINE, MAX_MEMORY_MIB, MAX_NAME, MAX_SCRATCH_MIB, MAX_SERIAL, MAX_TAG,
    MAX_VCPUS, MIN_MEMORY_MIB, Scratch, SpecError, VmSpec,
};
use crate::{growth, nic, tee};

/// A spec whose every bound was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedSpec(VmSpec);

impl CheckedSpec {
    /// The spec.
    #[must_use]
    pub fn spec(&self) -> &VmSpec {
        &self.0
    }

    /// Whether another process must see the guest's memory, besides the vsock device.
    #[must_use]
    pub fn has_vhost_user_fs(&self) -> bool {
        self.0.shared_fs.is_some()
    }
}

impl TryFrom<VmSpec> for CheckedSpec {
    type Error = SpecError;

    fn try_from(spec: VmSpec) -> Result<Self, SpecError> {
        check_shape(&spec)?;
        growth::check(&spec)?;
        tee::check(&spec)?;
        check_kernel_params(&spec)?;
        check_disks(&spec)?;
        nic::check(&spec.nics)?;
        check_paths(&spec)?;
        Ok(Self(spec))
    }
}

fn check_shape(spec: &VmSpec) -> Result<(), SpecError> {
    if !is_plain_word(&spec.name, MAX_NAME) {
        return Err(SpecError::Name {
            name: spec.name.clone(),
        });
    }
    if !(1..=MAX_VCPUS).contains(&spec.vcpus) {
        return Err(SpecError::Vcpus { vcpus: spec.vcpus });
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&spec.memory_mib) {
        return Err(SpecError::Memory {
            memory_mib: spec.memory_mib,
        });
    }
    if spec.host_port == 0 || spec.host_port == u32::MAX {
        return Err(SpecError::HostPort {
            port: spec.host_port,
        });
    }
    match &spec.shared_fs {
        Some(fs) if !is_plain_word(&fs.tag, MAX_TAG) => Err(SpecError::Tag {
            tag: fs.tag.clone(),
        }),
        _ => Ok(()),
    }
}

pub(crate) fn check_kernel_params(spec: &VmSpec) -> Result<(), SpecError> {
    for param in &spec.kernel_params {
        if param.is_empty() || !param.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SpecError::KernelParam {
                param: param.clone(),
            });
        }
    }
    let own = crate::qemu::kernel::LONGEST_OWN_PARAMS;
    let len = own
        + spec
            .kernel_params
            .iter()
            .map(|param| param.len() + 1)
            .sum::<usize>();
    if len > MAX_KERNEL_CMDLINE {
        return Err(SpecError::KernelCmdline { len });
    }
    Ok(())
}

fn check_disks(spec: &VmSpec) -> Result<(), SpecError> {
    let scratch = spec.scratch.iter().map(|scratch| scratch.serial.as_str());
    let disks = spec.disks.iter().map(|disk| disk.serial.as_str());
    let serials: Vec<&str> = disks.chain(scratch).collect();
    if serials.len() > MAX_DISKS {
        return Err(SpecError::Disks {
            count: serials.len(),
        });
    }
    for (index, serial) in serials.iter().enumerate() {
        if serials[..index].contains(serial) || !is_plain_word(serial, MAX_SERIAL) {
            return Err(SpecError::Serial {
                serial: (*serial).to_owned(),
            });
        }
    }
    match &spec.scratch {
        Some(Scratch { mib, .. }) if !(1..=MAX_SCRATCH_MIB).contains(mib) => {
            Err(SpecError::Scratch { mib: *mib })
        }
        _ => Ok(()),
    }
}

fn check_paths(spec: &VmSpec) -> Result<(), SpecError> {
    let file = |what, path: &Path| check_path(what, path, "a file that exists", Path::is_file);
    file("kernel", &spec.kernel)?;
    if let Some(initrd) = &spec.initrd {
        file("initrd", initrd)?;
    }
    if let Some(firmware) = &spec.firmware {
        file("firmware", firmware)?;
    }
    if let Some(igvm) = &spec.igvm {
        file("IGVM file", igvm)?;
    }
    for disk in &spec.disks {
        check_path("disk", &disk.path, "a file or device that exists", |path| {
            path.exists() && !path.is_dir()
        })?;
    }
    if let Some(scratch) = &spec.scratch {
        check_path(
            "directory of the scratch disk",
            &scratch.directory,
            "a directory that exists",
            Path::is_dir,
        )?;
    }
    if let Some(fs) = &spec.shared_fs {
        check_path(
            "virtio-fs socket",
            &fs.socket,
            "a socket that exists",
            Path::exists,
        )?;
    }
    check_path(
        "state directory",
        &spec.state_dir,
        "a directory that exists",
        Path::is_dir,
    )?;
    if spec.qemu.components().count() > 1 {
        file("QEMU program", &spec.qemu)?;
    }
    Ok(())
}

fn check_path(
    what: &'static str,
    path: &Path,
    expected: &'static str,
    holds: impl Fn(&Path) -> bool,
) -> Result<(), SpecError> {
    let printable = path
        .to_str()
        .is_some_and(|text| !text.chars().any(char::is_control));
    if !printable {
        return Err(SpecError::Path {
            what,
            path: path.to_owned(),
        });
    }
    if !holds(path) {
        return Err(SpecError::Missing {
            what,
            path: path.to_owned(),
            expected,
        });
    }
    Ok(())
}

pub(crate) fn is_plain_word(text: &str, longest: usize) -> bool {
    !text.is_empty()
        && text.len() <= longest
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Disk, DiskFormat};

    fn spec() -> (tempfile::TempDir, VmSpec) {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("vmlinux");
        std::fs::write(&kernel, b"k").unwrap();
        let spec = VmSpec::new("vm-1", &kernel, dir.path());
        (dir, spec)
    }

    fn refusal(change: impl FnOnce(&mut VmSpec)) -> SpecError {
        let (_dir, mut spec) = spec();
        change(&mut spec);
        CheckedSpec::try_from(spec).unwrap_err()
    }

    #[test]
    fn a_plain_spec_is_accepted() {
        let (_dir, spec) = spec();
        CheckedSpec::try_from(spec).unwrap();
    }

    #[test]
    fn every_bound_is_a_named_error() {
        assert!(matches!(
            refusal(|s| s.name = "a b".into()),
            SpecError::Name { .. }
        ));
        assert!(matches!(refusal(|s| s.vcpus = 0), SpecError::Vcpus { .. }));
        assert!(matches!(refusal(|s| s.vcpus = 65), SpecError::Vcpus { .. }));
        assert!(matches!(
            refusal(|s| s.memory_mib = 63),
            SpecError::Memory { .. }
        ));
        assert!(matches!(
            refusal(|s| s.memory_mib = (1 << 20) + 1),
            SpecError::Memory { .. }
        ));
        assert!(matches!(
            refusal(|s| s.host_port = u32::MAX),
            SpecError::HostPort { .. }
        ));
        assert!(matches!(
            refusal(|s| s.kernel_params = vec!["a b".into()]),
            SpecError::KernelParam { .. }
        ));
        assert!(matches!(
            refusal(|s| s.kernel_params = vec!["a".repeat(2047)]),
            SpecError::KernelCmdline { .. }
        ));
    }

    #[test]
    fn a_missing_file_is_named_with_its_purpose() {
        let error = refusal(|s| s.initrd = Some("/nonexistent/initrd".into()));
        assert_eq!(
            error.to_string(),
            "the initrd \"/nonexistent/initrd\" is not a file that exists"
        );
        let error = refusal(|s| s.qemu = "/nonexistent/qemu".into());
        assert!(matches!(
            error,
            SpecError::Missing {
                what: "QEMU program",
                ..
            }
        ));
    }

    #[test]
    fn two_disks_cannot_share_a_serial() {
        let error = refusal(|s| {
            let disk = Disk {
                path: s.kernel.clone(),
                format: DiskFormat::Raw,
                serial: "d".into(),
            };
            s.disks = vec![disk.clone(), disk];
        });
        assert_eq!(error, SpecError::Serial { serial: "d".into() });
    }

    #[test]
    fn a_scratch_disk_has_a_size_and_a_serial_of_its_own() {
        let scratch = |mib, serial: &str| {
            let serial = serial.to_owned();
            move |s: &mut VmSpec| {
                s.disks = vec![Disk {
                    path: s.kernel.clone(),
                    format: DiskFormat::Raw,
                    serial: "d".into(),
                }];
                s.scratch = Some(Scratch {
                    directory: s.state_dir.clone(),
                    mib,
                    serial,
                });
            }
        };
        for mib in [0, MAX_SCRATCH_MIB + 1] {
            assert_eq!(refusal(scratch(mib, "s")), SpecError::Scratch { mib });
        }
        assert_eq!(
            refusal(scratch(1, "d")),
            SpecError::Serial { serial: "d".into() }
        );
        let error = refusal(|s| {
            scratch(1, "s")(s);
            s.scratch.as_mut().unwrap().directory = "/nonexistent".into();
        });
        assert!(error.to_string().contains("directory of the scratch disk"));
    }

    #[test]
    fn a_path_with_a_control_character_is_refused() {
        let error = refusal(|s| s.kernel = "/tmp/a\nb".into());
        assert!(matches!(error, SpecError::Path { what: "kernel", .. }));
    }
}
