//! The kernel's own end of a network card (`/dev/vhost-net`): packets go between the tap and the guest's memory without
//! QEMU. QEMU gets the device open, as it gets everything else, and opens nothing.

use std::fs::File;
use std::os::fd::OwnedFd;

use crate::accel::Resolved;
use crate::spec::VmSpec;

const DEVICE: &str = "/dev/vhost-net";

/// Whether a VM's cards use it, where the host has it: an emulated guest has no way to be woken by the kernel.
pub(crate) fn is_wanted(spec: &VmSpec, accel: Resolved) -> bool {
    spec.vhost_net && accel == Resolved::Kvm
}

/// The device, for one card; none where the host has none.
pub(crate) fn open() -> Option<OwnedFd> {
    let opened = File::options().read(true).write(true).open(DEVICE);
    opened.map(OwnedFd::from).ok()
}
