//! A tap device: one end is an interface, the other a descriptor for QEMU. It is never made to persist, so
//! it is gone with the last who has it open, whatever ends them.
//! <https://docs.kernel.org/networking/tuntap.html>
#![expect(unsafe_code, reason = "there is no safe wrapper for TUNSETIFF")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;

const DEVICE: &str = "/dev/net/tun";

/// Ethernet frames, each after a virtio-net header, on one queue, and nobody else's device.
const FLAGS: libc::c_int =
    libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;

/// The name of the tap for the interface of this number. It is at most as long as a name may be.
pub(super) fn name(index: u32) -> String {
    format!("ctap{index}")
}

/// Whether an interface has the name of one of ours.
pub(super) fn is_ours(name: &str) -> bool {
    name.strip_prefix("ctap")
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Makes a tap in the calling thread's network namespace.
///
/// # Errors
/// `EBUSY` where there is one of this name, which is another VM's.
pub(super) fn open(name: &str) -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open(DEVICE)?;
    // SAFETY: ifreq is plain old data, for which zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the flags are the field's 16 bits; the highest is its sign"
    )]
    let flags = FLAGS as libc::c_short;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the descriptor is open and the kernel reads and writes only the ifreq, which outlives the
    // call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if made == 0 {
        Ok(file.into())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What to do when there is no tap.
pub(super) fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EINVAL) => {
            "another VM has its tap device: a network namespace serves one VM"
        }
        Some(libc::ENOENT | libc::ENODEV) => {
            "no /dev/net/tun for its tap device: load the kernel's module `tun`"
        }
        _ => "make its tap device",
    }
}

/// Keeps the kernel from speaking IPv6 of its own on a tap: the guest would hear it. A kernel without IPv6
/// does not.
pub(super) fn keep_silent(name: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_has_a_tap_with_a_name_that_fits() {
        for index in [1, 42, u32::MAX] {
            let name = name(index);
            assert!(netlink::is_name(&name) && is_ours(&name), "{name}");
        }
        for other in ["eth0", "ctap", "ctapx", "tap0"] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
