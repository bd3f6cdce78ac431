//! From what stands in a network namespace to what is made for the VM and told to the guest: a pure
//! function, so that every kind of network can be tried without one.

use std::collections::HashMap;
use std::net::IpAddr;

use agent_api::types::{ARPNeighbor, IPAddress, IPFamily, Interface};
use agent_api::{limit, types};
use hypervisor::nic::MAX_NICS;
use netlink::{Address, Destination, Link, Mac, Neighbour, Route, Socket};

use super::tap;

/// The packets that every network carries (RFC 791, section 3.1).
const MIN_MTU: u32 = 68;
/// The packets that a virtio-net card carries.
const MAX_MTU: u32 = 65_535;
/// `IFF_NOARP`, the one flag that is told.
const NOARP: u32 = 0x80;
/// `NUD_PERMANENT`.
const PERMANENT: i32 = 0x80;
/// `RTNH_F_ONLINK`.
const ONLINK: u32 = 4;
/// Interfaces that a tap can stand in for: Ethernet devices whose frames pass through traffic control.
const REDIRECTED: &[&str] = &["veth", "macvlan", "ipvlan", "vlan"];

/// What stands in a namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Interfaces.
    pub links: Vec<Link>,
    /// Their addresses.
    pub addresses: Vec<Address>,
    /// Routes of the main table.
    pub routes: Vec<Route>,
    /// Neighbours that somebody has set.
    pub neighbours: Vec<Neighbour>,
}

impl Found {
    /// Reads the namespace of a socket.
    ///
    /// # Errors
    /// [`netlink::Error`].
    pub fn read(socket: &mut Socket) -> Result<Self, netlink::Error> {
        Ok(Self {
            links: socket.links()?,
            addresses: socket.addresses()?,
            routes: socket.routes()?,
            neighbours: socket.neighbours()?,
        })
    }
}

/// How an interface comes to QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Through a tap of ours, to which its frames are redirected.
    Redirect,
    /// It is a tap.
    Macvtap,
}

/// An interface that the VM gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wire {
    /// Its number.
    pub index: u32,
    /// Its name, in the guest too.
    pub name: String,
    /// Its hardware address, which is the guest's.
    pub mac: Mac,
    /// Its longest packet.
    pub mtu: u32,
    /// How it comes to QEMU.
    pub way: Way,
}

/// What the agent is told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    /// One for each wire, in the same order.
    pub interfaces: Vec<Interface>,
    /// In an order in which each can be added.
    pub routes: Vec<types::Route>,
    /// Neighbours.
    pub neighbours: Vec<ARPNeighbor>,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// The interfaces that the VM gets.
    pub wires: Vec<Wire>,
    /// What the agent is told.
    pub told: Told,
}

/// What cannot be given to a VM.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// An interface of another kind.
    #[error(
        "interface {name} is a {kind}, whose frames do not reach a VM: attach the pod by veth, macvlan, ipvlan, macvtap or vlan, or set the interface down"
    )]
    Kind {
        /// The interface.
        name: String,
        /// What it is.
        kind: String,
    },
    /// An interface whose name the guest would not take.
    #[error("interface {name:?}: rename it, with A-Z a-z 0-9 . _ - only")]
    Name {
        /// The name.
        name: String,
    },
    /// No hardware address, or one of a group.
    #[error("interface {name} has no hardware address of one Ethernet card: give it one")]
    NoMac {
        /// The interface.
        name: String,
    },
    /// Two interfaces that the guest could not tell apart.
    #[error(
        "interfaces {name} and {other} have one hardware address, {mac}, by which the guest tells them apart: put them on different masters, or use macvlan"
    )]
    SameMac {
        /// The one.
        name: String,
        /// The other.
        other: String,
        /// The address.
        mac: Mac,
    },
    /// Longer or shorter packets than a card carries.
    #[error("interface {name} has an MTU of {mtu}: use {MIN_MTU} to {MAX_MTU}")]
    Mtu {
        /// The interface.
        name: String,
        /// The MTU.
        mtu: u32,
    },
    /// More than a VM has.
    #[error("{count} {what}: a VM has at most {max}")]
    TooMany {
        /// Of what.
        what: String,
        /// How many.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// A route that the guest could not be told.
    #[error(
        "route {route} leads to no interface or to several: a VM takes only routes to one interface of the pod"
    )]
    Route {
        /// The route.
        route: String,
    },
}

/// Plans a VM's network.
///
/// # Errors
/// [`PlanError`] names what cannot be done, and the fix.
pub fn plan(found: &Found) -> Result<Plan, PlanError> {
    let mut wires: Vec<Wire> = Vec::new();
    let mut interfaces = Vec::new();
    for link in found.links.iter().filter(|link| is_wanted(link)) {
        let wire = wire(link)?;
        if let Some(other) = wires.iter().find(|other| other.mac == wire.mac) {
            return Err(PlanError::SameMac {
                name: wire.name,
                other: other.name.clone(),
                mac: wire.mac,
            });
        }
        interfaces.push(interface(link, &wire, &found.addresses)?);
        wires.push(wire);
    }
    capped("network interfaces".to_owned(), wires.len(), MAX_NICS)?;
    let names: HashMap<u32, &str> = wires
        .iter()
        .map(|wire| (wire.index, wire.name.as_str()))
        .collect();
    let told = Told {
        interfaces,
        routes: routes(&found.routes, &names)?,
        neighbours: neighbours(&found.neighbours, &names)?,
    };
    Ok(Plan { wires, told })
}

/// What is down carries nothing: among that are the tunnels that the kernel puts into each namespace.
fn is_wanted(link: &Link) -> bool {
    link.is_up && !link.is_loopback && !tap::is_ours(&link.name)
}

fn wire(link: &Link) -> Result<Wire, PlanError> {
    let name = link.name.clone();
    let kind = link.kind.as_deref().unwrap_or("physical device");
    let way = match kind {
        "macvtap" => Way::Macvtap,
        kind if link.is_ethernet && REDIRECTED.contains(&kind) => Way::Redirect,
        _ => {
            let kind = kind.to_owned();
            return Err(PlanError::Kind { name, kind });
        }
    };
    if !netlink::is_name(&name) {
        return Err(PlanError::Name { name });
    }
    let Some(mac) = link.mac.filter(|mac| mac.is_unicast()) else {
        return Err(PlanError::NoMac { name });
    };
    if !(MIN_MTU..=MAX_MTU).contains(&link.mtu) {
        let mtu = link.mtu;
        return Err(PlanError::Mtu { name, mtu });
    }
    Ok(Wire {
        index: link.index,
        name,
        mac,
        mtu: link.mtu,
        way,
    })
}

fn interface(link: &Link, wire: &Wire, addresses: &[Address]) -> Result<Interface, PlanError> {
    let own = addresses
        .iter()
        .filter(|address| address.index == wire.index && is_told(address));
    let addresses: Vec<_> = own
        .map(|address| ip_address(address.ip, address.prefix))
        .collect();
    capped(
        format!("addresses of interface {}", wire.name),
        addresses.len(),
        limit::MAX_ADDRESSES,
    )?;
    Ok(Interface {
        device: wire.name.clone(),
        name: wire.name.clone(),
        IPAddresses: addresses,
        mtu: wire.mtu.into(),
        hwAddr: wire.mac.to_string(),
        type_: link.kind.clone().unwrap_or_default(),
        raw_flags: if link.is_noarp { NOARP } else { 0 },
        ..Default::default()
    })
}

/// The guest makes its link-local addresses of IPv6 itself, and those that a router makes it choose. One of
/// IPv4 that a lease gave is not permanent, and is told.
fn is_told(address: &Address) -> bool {
    match address.ip {
        IpAddr::V4(_) => true,
        IpAddr::V6(_) => address.is_permanent && !address.is_link_local,
    }
}

fn routes(routes: &[Route], names: &HashMap<u32, &str>) -> Result<Vec<types::Route>, PlanError> {
    // The guest's kernel makes these itself, from addresses and from what routers say.
    let ours = |route: &&Route| ![Route::BY_KERNEL, Route::BY_ROUTER].contains(&route.protocol);
    let mut told = Vec::new();
    for route in routes.iter().filter(ours) {
        match route.by {
            Destination::Link(index) => {
                // One by the loopback, or by an interface that is down, leads nowhere.
                told.extend(names.get(&index).map(|name| (route, *name)));
            }
            Destination::Other => {
                let route = route.to_string();
                return Err(PlanError::Route { route });
            }
        }
    }
    capped("routes".to_owned(), told.len(), limit::MAX_ROUTES)?;
    // A gateway is reached by a route that must be there first.
    told.sort_by_key(|(route, _)| route.gateway.is_some());
    Ok(told
        .into_iter()
        .map(|(route, name)| told_route(route, name))
        .collect())
}

fn told_route(route: &Route, device: &str) -> types::Route {
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    types::Route {
        dest: match route.to.len {
            0 => String::new(),
            _ => route.to.to_string(),
        },
        gateway: text(route.gateway),
        device: device.to_owned(),
        source: text(route.source),
        scope: route.scope.into(),
        family: family(route.to.ip).into(),
        flags: if route.is_onlink { ONLINK } else { 0 },
        mtu: route.mtu.unwrap_or_default(),
        metric: route.metric,
        ..Default::default()
    }
}

fn neighbours(
    neighbours: &[Neighbour],
    names: &HashMap<u32, &str>,
) -> Result<Vec<ARPNeighbor>, PlanError> {
    let told: Vec<_> = neighbours
        .iter()
        .filter_map(|neighbour| {
            let device = (*names.get(&neighbour.index)?).to_owned();
            let width = if neighbour.ip.is_ipv4() { 32 } else { 128 };
            Some(ARPNeighbor {
                toIPAddress: Some(ip_address(neighbour.ip, width)).into(),
                device,
                lladdr: neighbour.mac.to_string(),
                state: PERMANENT,
                ..Default::default()
            })
        })
        .collect();
    capped("neighbours".to_owned(), told.len(), limit::MAX_NEIGHBOURS)?;
    Ok(told)
}

fn ip_address(ip: IpAddr, prefix: u8) -> IPAddress {
    IPAddress {
        family: family(ip).into(),
        address: ip.to_string(),
        mask: prefix.to_string(),
        ..Default::default()
    }
}

fn family(ip: IpAddr) -> IPFamily {
    match ip {
        IpAddr::V4(_) => IPFamily::v4,
        IpAddr::V6(_) => IPFamily::v6,
    }
}

fn capped(what: String, count: usize, max: usize) -> Result<(), PlanError> {
    if count > max {
        return Err(PlanError::TooMany { what, count, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
