//! Addresses of interfaces.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::{Error, Socket};

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The interface's number.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// How many of its bits are the network's.
    pub prefix: u8,
    /// Whether it stays until it is removed.
    pub is_permanent: bool,
    /// Whether it means something on its link only.
    pub is_link_local: bool,
}

impl Socket {
    /// Every address.
    ///
    /// # Errors
    /// [`Error`].
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let wanted = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let objects = self.list("list the addresses", &wanted)?;
        let addresses = objects.into_iter().filter_map(|object| match object {
            RouteNetlinkMessage::NewAddress(message) => address(&message),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// Gives an interface an address, which it may have already. One of IPv6 can be used at once:
    /// whoever chose it made sure that nobody else has it.
    ///
    /// # Errors
    /// [`Error`] names the address.
    pub fn add_address(&mut self, address: &Address) -> Result<(), Error> {
        let mut message = blank(address);
        if address.ip.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        if let IpAddr::V4(ip) = address.ip
            && address.prefix < 31
        {
            let host_bits = u32::MAX.checked_shr(address.prefix.into()).unwrap_or(0);
            let broadcast = (u32::from(ip) | host_bits).into();
            message
                .attributes
                .push(AddressAttribute::Broadcast(broadcast));
        }
        let what = format!("add the address {}/{}", address.ip, address.prefix);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.act(&what, RouteNetlinkMessage::NewAddress(message), flags)
    }

    /// Takes an address away.
    ///
    /// # Errors
    /// [`Error`] names the address.
    pub fn remove_address(&mut self, address: &Address) -> Result<(), Error> {
        let what = format!("remove the address {}/{}", address.ip, address.prefix);
        self.act(&what, RouteNetlinkMessage::DelAddress(blank(address)), 0)
    }
}

fn blank(address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = address.index;
    message.header.prefix_len = address.prefix;
    message.header.family = match address.ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    if address.is_link_local {
        message.header.scope = AddressScope::Link;
    }
    message.attributes = vec![
        AddressAttribute::Local(address.ip),
        AddressAttribute::Address(address.ip),
    ];
    message
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut peer) = (None, None);
    let mut is_permanent = message.header.flags.contains(AddressHeaderFlags::Permanent);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Flags(flags) => {
                is_permanent = flags.contains(AddressFlags::Permanent);
            }
            _ => {}
        }
    }
    Some(Address {
        index: message.header.index,
        // Where both are there, the other is the far end of a point-to-point link.
        ip: local.or(peer)?,
        prefix: message.header.prefix_len,
        is_permanent,
        is_link_local: message.header.scope == AddressScope::Link,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_the_same() {
        for (ip, prefix) in [("10.0.0.5", 24), ("fd00::5", 64)] {
            let written = Address {
                index: 7,
                ip: ip.parse().unwrap(),
                prefix,
                is_permanent: false,
                is_link_local: false,
            };
            assert_eq!(address(&blank(&written)), Some(written));
        }
    }
}
