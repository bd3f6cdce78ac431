//! Interfaces.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};

use crate::{Error, Mac, Socket};

/// The longest name of an interface (`IFNAMSIZ`), without its NUL.
pub const MAX_NAME: usize = 15;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is, as `ip -details link` prints it: `veth`, `macvlan`. A device has none.
    pub kind: Option<String>,
    /// Whether it speaks Ethernet.
    pub is_ethernet: bool,
    /// Whether it is the loopback.
    pub is_loopback: bool,
    /// Whether it was set up.
    pub is_up: bool,
    /// Whether it asks nobody for hardware addresses.
    pub is_noarp: bool,
    /// Its hardware address, where it has one of Ethernet's length.
    pub mac: Option<Mac>,
    /// The longest packet, in bytes.
    pub mtu: u32,
}

/// What to change of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Its name. The kernel renames an interface only while it is down.
    pub name: Option<String>,
    /// Its longest packet.
    pub mtu: Option<u32>,
    /// Up or down.
    pub up: Option<bool>,
    /// Whether it asks for hardware addresses.
    pub noarp: Option<bool>,
}

/// Whether the kernel takes this as the name of an interface, and no shell, path or option does more
/// with it.
#[must_use]
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with(['-', '.'])
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte))
}

impl Socket {
    /// Every interface.
    ///
    /// # Errors
    /// [`Error`].
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let wanted = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let objects = self.list("list the interfaces", &wanted)?;
        let links = objects.into_iter().filter_map(|object| match object {
            RouteNetlinkMessage::NewLink(message) => Some(link(message)),
            _ => None,
        });
        Ok(links.collect())
    }

    /// Changes an interface.
    ///
    /// # Errors
    /// [`Error`] names it.
    pub fn change_link(&mut self, link: &Link, change: &Change) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        let mut flag = |flag: LinkFlags, on: Option<bool>| {
            if let Some(on) = on {
                message.header.change_mask |= flag;
                message.header.flags.set(flag, on);
            }
        };
        flag(LinkFlags::Up, change.up);
        flag(LinkFlags::Noarp, change.noarp);
        let name = change.name.clone().map(LinkAttribute::IfName);
        message.attributes.extend(name);
        let mtu = change.mtu.map(LinkAttribute::Mtu);
        message.attributes.extend(mtu);
        let what = format!("change the interface {}", link.name);
        self.act(&what, RouteNetlinkMessage::SetLink(message), 0)
    }
}

fn link(message: LinkMessage) -> Link {
    let header = message.header;
    let mut link = Link {
        index: header.index,
        name: String::new(),
        kind: None,
        is_ethernet: header.link_layer_type == LinkLayerType::Ether,
        is_loopback: header.flags.contains(LinkFlags::Loopback),
        is_up: header.flags.contains(LinkFlags::Up),
        is_noarp: header.flags.contains(LinkFlags::Noarp),
        mac: None,
        mtu: 0,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_kernel_takes_and_no_more() {
        for name in ["eth0", "net1.100", "a-b_c", "eth0@if3"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "-x", "a/b", "a b", "abcdefghijklmnop", "ä"] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn the_loopback_of_this_namespace_is_listed() {
        let links = Socket::open().unwrap().links().unwrap();
        let loopback = links.iter().find(|link| link.is_loopback).unwrap();
        assert_eq!(
            (loopback.name.as_str(), loopback.is_ethernet),
            ("lo", false)
        );
    }
}
