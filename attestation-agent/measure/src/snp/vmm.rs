//! Who launches.

use std::fmt;

/// A VMM on KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmm {
    /// QEMU.
    Qemu,
    /// Cloud Hypervisor, as of version 53. On the Microsoft hypervisor it launches in another way, which is not
    /// known here.
    CloudHypervisor,
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "QEMU",
            Self::CloudHypervisor => "Cloud Hypervisor",
        })
    }
}
