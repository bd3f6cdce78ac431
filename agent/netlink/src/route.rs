//! Routes of the main table.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::{Error, Socket};

/// Addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The first of them.
    pub ip: IpAddr,
    /// How many bits are the same.
    pub len: u8,
}

impl Prefix {
    /// Every address of the family of `ip`.
    #[must_use]
    pub fn all_like(ip: IpAddr) -> Self {
        let ip = match ip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { ip, len: 0 }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.len)
    }
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To one interface, by a gateway or directly.
    Link(u32),
    /// To several at once, to none, or in a way that this crate does not read.
    Other,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What it is for.
    pub to: Prefix,
    /// Where it leads.
    pub by: Destination,
    /// The gateway, where there is one.
    pub gateway: Option<IpAddr>,
    /// The source address of what takes it.
    pub source: Option<IpAddr>,
    /// The kernel's `RT_SCOPE_` number.
    pub scope: u8,
    /// Whether the gateway is on the link although no prefix says so.
    pub is_onlink: bool,
    /// Of two routes to the same, the lower one is taken.
    pub metric: u32,
    /// The longest packet, in bytes, where the route sets it.
    pub mtu: Option<u32>,
    /// Who made it, the kernel's `RTPROT_` number.
    pub protocol: u8,
}

impl Route {
    /// `RTPROT_KERNEL`: it comes and goes with an address.
    pub const BY_KERNEL: u8 = 2;
    /// `RTPROT_STATIC`.
    pub const STATIC: u8 = 4;
    /// `RTPROT_RA`: a router told of itself.
    pub const BY_ROUTER: u8 = 9;
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to)?;
        match self.gateway {
            Some(gateway) => write!(f, " via {gateway}"),
            None => Ok(()),
        }
    }
}

impl Socket {
    /// Every route of the main table.
    ///
    /// # Errors
    /// [`Error`].
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let wanted = RouteNetlinkMessage::GetRoute(message);
            let objects = self.list("list the routes", &wanted)?;
            routes.extend(objects.into_iter().filter_map(|object| match object {
                RouteNetlinkMessage::NewRoute(message) => route(&message),
                _ => None,
            }));
        }
        Ok(routes)
    }

    /// Adds a route to the main table.
    ///
    /// # Errors
    /// [`Error`] names the route.
    pub fn add_route(&mut self, route: &Route) -> Result<(), Error> {
        let what = format!("add the route {route}");
        self.act(
            &what,
            RouteNetlinkMessage::NewRoute(message(route)),
            NLM_F_CREATE,
        )
    }

    /// Takes a route out of the main table.
    ///
    /// # Errors
    /// [`Error`] names the route.
    pub fn remove_route(&mut self, route: &Route) -> Result<(), Error> {
        let what = format!("remove the route {route}");
        self.act(&what, RouteNetlinkMessage::DelRoute(message(route)), 0)
    }
}

fn message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: match route.to.ip {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        },
        destination_prefix_length: route.to.len,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::from(route.protocol),
        scope: RouteScope::from(route.scope),
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    if route.is_onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if route.to.len > 0 {
        attributes.push(RouteAttribute::Destination(route.to.ip.into()));
    }
    if let Destination::Link(index) = route.by {
        attributes.push(RouteAttribute::Oif(index));
    }
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    if route.metric > 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    let mtu = route
        .mtu
        .map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    attributes.extend(mtu);
    message
}

/// A route of the main table; those of others are none of ours.
fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut route = Route {
        to: Prefix {
            ip: any,
            len: header.destination_prefix_length,
        },
        by: Destination::Other,
        gateway: None,
        source: None,
        scope: header.scope.into(),
        is_onlink: header.flags.contains(RouteFlags::Onlink),
        metric: 0,
        mtu: None,
        protocol: header.protocol.into(),
    };
    let mut is_plain = header.kind == RouteType::Unicast;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.to.ip = ip(address)?,
            RouteAttribute::Oif(index) => route.by = Destination::Link(*index),
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(_) | RouteAttribute::Via(_) | RouteAttribute::Encap(_) => {
                is_plain = false;
            }
            _ => {}
        }
    }
    if !is_plain {
        route.by = Destination::Other;
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(to: &str, len: u8) -> Route {
        Route {
            to: Prefix {
                ip: to.parse().unwrap(),
                len,
            },
            by: Destination::Link(3),
            gateway: None,
            source: None,
            scope: 0,
            is_onlink: false,
            metric: 0,
            mtu: None,
            protocol: Route::STATIC,
        }
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let mut full = plain("10.1.0.0", 16);
        full.gateway = Some("169.254.1.1".parse().unwrap());
        full.source = Some("10.0.0.5".parse().unwrap());
        full.is_onlink = true;
        full.metric = 100;
        full.mtu = Some(1400);
        for written in [plain("0.0.0.0", 0), plain("fd00::", 64), full] {
            assert_eq!(route(&message(&written)), Some(written));
        }
    }

    #[test]
    fn a_route_of_another_table_is_not_ours_and_a_black_hole_leads_nowhere() {
        let mut other = message(&plain("10.1.0.0", 16));
        other.header.table = 100;
        assert_eq!(route(&other), None);
        let mut hole = message(&plain("10.1.0.0", 16));
        hole.header.kind = RouteType::BlackHole;
        assert_eq!(route(&hole).unwrap().by, Destination::Other);
    }
}
