//! A network interface of the guest: what its frames go to, and the address that the guest's card has.
//!
//! That is a descriptor that the caller opened: QEMU inherits it and nothing else of the network, neither
//! makes nor names a device of the host, and may stand in another network namespace than the device. Or it
//! is QEMU's user network, for callers that may make no device: connections are made by QEMU itself, as the
//! user that it runs as.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use thiserror::Error;

/// The most interfaces of one VM. A microvm has 24 virtio-mmio slots, of which [`crate::spec::MAX_DISKS`]
/// may be taken by disks, and three by the other devices.
pub const MAX_NICS: usize = 5;

/// A network interface.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The hardware address of the guest's card.
    pub mac: [u8; 6],
    /// None for the user network.
    tap: Option<Arc<OwnedFd>>,
}

/// The descriptors of an interface that is no user network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CardFds {
    /// The tap.
    pub tap: RawFd,
    /// The kernel's end of the card, where it has one.
    pub vhost: Option<RawFd>,
}

/// Why the interfaces were refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NicError {
    /// Too many.
    #[error("{count} network interfaces: at most {MAX_NICS} are supported")]
    TooMany {
        /// As asked for.
        count: usize,
    },
    /// A hardware address that no card can have, or that two would have.
    #[error("hardware address {}: use one of one card, each once", spelled(*mac))]
    Mac {
        /// The address.
        mac: [u8; 6],
    },
}

impl Nic {
    /// An interface behind an open tap or macvtap device, in the mode that has a header before each
    /// packet (`IFF_VNET_HDR`) and one queue.
    #[must_use]
    pub fn new(mac: [u8; 6], tap: OwnedFd) -> Self {
        Self {
            mac,
            tap: Some(Arc::new(tap)),
        }
    }

    /// An interface in QEMU's user network, where the guest is 10.0.2.15, the way out 10.0.2.2 and the name
    /// server 10.0.2.3. Nobody reaches the guest from outside.
    #[must_use]
    pub fn user(mac: [u8; 6]) -> Self {
        Self { mac, tap: None }
    }

    pub(crate) fn tap(&self) -> Option<BorrowedFd<'_>> {
        self.tap.as_ref().map(|tap| tap.as_fd())
    }
}

/// The same address and the same descriptor: two files cannot be compared.
impl PartialEq for Nic {
    fn eq(&self, other: &Self) -> bool {
        let descriptor = |nic: &Self| nic.tap.as_ref().map(|tap| tap.as_raw_fd());
        self.mac == other.mac && descriptor(self) == descriptor(other)
    }
}

impl Eq for Nic {}

pub(crate) fn check(nics: &[Nic]) -> Result<(), NicError> {
    if nics.len() > MAX_NICS {
        return Err(NicError::TooMany { count: nics.len() });
    }
    for (index, Nic { mac, .. }) in nics.iter().enumerate() {
        let is_group = mac[0] & 1 == 1;
        let is_second = nics[..index].iter().any(|other| other.mac == *mac);
        if is_group || is_second || *mac == [0; 6] {
            return Err(NicError::Mac { mac: *mac });
        }
    }
    Ok(())
}

/// The words of `-netdev`: a tap, which QEMU neither sets up nor down, or the user network of IPv4.
pub(crate) fn backend(index: usize, fds: Option<CardFds>) -> String {
    match fds {
        Some(CardFds { tap, vhost: None }) => format!("tap,id=net{index},fd={tap},vhost=off"),
        Some(CardFds {
            tap,
            vhost: Some(vhost),
        }) => format!("tap,id=net{index},fd={tap},vhost=on,vhostfd={vhost}"),
        None => format!("user,id=net{index},ipv6=off"),
    }
}

/// The properties of the guest's card.
pub(crate) fn card(index: usize, mac: [u8; 6]) -> String {
    format!("netdev=net{index},mac={}", spelled(mac))
}

pub(crate) fn spelled(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(mac: [u8; 6]) -> Nic {
        Nic::new(mac, std::fs::File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn cards_have_addresses_of_their_own() {
        let (one, two) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        check(&[nic(one), nic(two)]).unwrap();
        for wrong in [vec![one, one], vec![[1, 0, 0, 0, 0, 1]], vec![[0; 6]]] {
            let nics: Vec<_> = wrong.into_iter().map(nic).collect();
            assert!(matches!(check(&nics), Err(NicError::Mac { .. })));
        }
        let many: Vec<_> = (0..6).map(|last| nic([2, 0, 0, 0, 0, last])).collect();
        assert_eq!(check(&many), Err(NicError::TooMany { count: 6 }));
    }
    #[test]
    fn a_card_without_a_descriptor_is_in_the_user_network() {
        let mac = [2, 0, 0, 0, 0, 1];
        assert!(Nic::user(mac).tap().is_none() && Nic::user(mac) != nic(mac));
        assert_eq!(backend(1, None), "user,id=net1,ipv6=off");
        let fds = |vhost| Some(CardFds { tap: 7, vhost });
        assert_eq!(backend(0, fds(None)), "tap,id=net0,fd=7,vhost=off");
        let with_vhost = "tap,id=net0,fd=7,vhost=on,vhostfd=8";
        assert_eq!(backend(0, fds(Some(8))), with_vhost);
    }
}
