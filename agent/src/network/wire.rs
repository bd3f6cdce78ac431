//! What the host says of the network, checked: the messages of the contract become what the kernel is asked
//! for, and the other way round. Nothing here asks the kernel.

use std::collections::HashMap;
use std::net::IpAddr;

use agent_api::types::{ARPNeighbor, IPAddress, IPFamily, Interface};
use agent_api::{GuestError, limit, types};
use netlink::{Address, Destination, Link, Mac, Neighbour, Prefix, Route};

use crate::fault::{invalid, unimplemented};

pub(super) const PHASE: &str = "network";
/// `IFF_NOARP`.
const NOARP: u32 = 0x80;
/// `RTNH_F_ONLINK`.
const ONLINK: u32 = 4;
/// `RT_SCOPE_LINK`.
const SCOPE_LINK: u8 = 253;
/// `NUD_PERMANENT`.
const PERMANENT: i32 = 0x80;
/// What the kernel takes where a route of IPv6 has no metric.
const METRIC_V6: u32 = 1024;
/// The most of a text that is shown when it is refused.
const MAX_SHOWN: usize = 64;

/// A card as it is to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Card {
    pub(super) mac: Mac,
    pub(super) name: String,
    pub(super) mtu: Option<u32>,
    pub(super) noarp: bool,
    addresses: Vec<Prefix>,
}

impl Card {
    /// Its addresses, when it is the interface of a number.
    pub(super) fn addresses(&self, index: u32) -> impl Iterator<Item = Address> {
        self.addresses.iter().map(move |address| Address {
            index,
            ip: address.ip,
            prefix: address.len,
            is_permanent: true,
            is_link_local: matches!(address.ip, IpAddr::V4(ip) if ip.is_link_local()),
        })
    }
}

/// The card that a message describes.
pub(super) fn card(interface: &Interface) -> Result<Card, GuestError> {
    let name = &interface.name;
    if !netlink::is_name(name) || name == "lo" {
        let message = format!("{} is no name of a card", shown(name));
        return Err(invalid(PHASE, message));
    }
    let refused = |what: &str| invalid(PHASE, format!("interface {name}: {what}"));
    if interface.hwAddr.is_empty() {
        let message = format!("interface {name}: a card is found by hwAddr, which is empty");
        return Err(unimplemented(PHASE, message));
    }
    let mac: Mac = interface
        .hwAddr
        .parse()
        .map_err(|error| refused(&format!("hwAddr: {error}")))?;
    if !mac.is_unicast() {
        return Err(refused("hwAddr is no address of one card"));
    }
    if interface.raw_flags & !NOARP != 0 {
        return Err(refused("raw_flags may have IFF_NOARP alone"));
    }
    if interface.IPAddresses.len() > limit::MAX_ADDRESSES {
        return Err(refused(&format!(
            "more than {} addresses",
            limit::MAX_ADDRESSES
        )));
    }
    let addresses = interface.IPAddresses.iter().map(|address| {
        own_address(address)
            .map_err(|what| refused(&format!("{}: {what}", shown(&address.address))))
    });
    Ok(Card {
        mac,
        name: name.clone(),
        mtu: match interface.mtu {
            0 => None,
            mtu => Some(u32::try_from(mtu).map_err(|_| refused("mtu is no MTU"))?),
        },
        noarp: interface.raw_flags & NOARP != 0,
        addresses: addresses.collect::<Result<_, _>>()?,
    })
}

/// An address that a card may have.
fn own_address(address: &IPAddress) -> Result<Prefix, &'static str> {
    let ip: IpAddr = address.address.parse().map_err(|_| "it is no IP address")?;
    if !is_of(ip, address.family.enum_value_or_default()) {
        return Err("it is of another family than it says");
    }
    if !is_ours_to_give(ip) {
        return Err("no card has it");
    }
    let len: u8 = address
        .mask
        .parse()
        .map_err(|_| "mask is no length of a prefix")?;
    if len > width(ip) {
        return Err("mask is longer than the address");
    }
    Ok(Prefix { ip, len })
}

/// The routes of a message, in an order in which each can be added.
pub(super) fn routes(
    routes: &[types::Route],
    cards: &HashMap<&str, u32>,
) -> Result<Vec<Route>, GuestError> {
    if routes.len() > limit::MAX_ROUTES {
        let message = format!("more than {} routes", limit::MAX_ROUTES);
        return Err(invalid(PHASE, message));
    }
    let mut wanted = Vec::new();
    for told in routes {
        let refused = |what: &str| {
            let message = format!(
                "route {} by {}: {what}",
                shown(&told.dest),
                shown(&told.device)
            );
            invalid(PHASE, message)
        };
        let index = cards.get(told.device.as_str());
        let index = *index.ok_or_else(|| refused("the guest has no such card"))?;
        wanted.push(route(told, index).map_err(refused)?);
    }
    // A gateway is reached by a route that must be there first.
    wanted.sort_by_key(|route: &Route| route.gateway.is_some());
    Ok(wanted)
}

fn route(told: &types::Route, index: u32) -> Result<Route, &'static str> {
    let family = told.family.enum_value_or_default();
    let to = destination(&told.dest, family)?;
    if told.flags & !ONLINK != 0 {
        return Err("flags may have RTNH_F_ONLINK alone");
    }
    let address = |text: &str| match text {
        "" => Ok(None),
        text => {
            let ip: IpAddr = text
                .parse()
                .map_err(|_| "gateway or source is no IP address")?;
            if !is_of(ip, family) {
                return Err("gateway or source is of another family");
            }
            match is_ours_to_give(ip) {
                true => Ok(Some(ip)),
                false => Err("gateway or source is no address of a card"),
            }
        }
    };
    let scope = u8::try_from(told.scope).map_err(|_| "scope is no scope")?;
    let gateway = address(&told.gateway)?;
    let (scope, metric) = match (family, told.metric) {
        // The kernel has none for IPv6, and a metric always.
        (IPFamily::v6, 0) => (0, METRIC_V6),
        (IPFamily::v6, metric) => (0, metric),
        // What no gateway reaches is on the link, or it would reach no gateway itself.
        (IPFamily::v4, metric) if gateway.is_none() => (scope.max(SCOPE_LINK), metric),
        (IPFamily::v4, metric) => (scope, metric),
    };
    Ok(Route {
        to,
        by: Destination::Link(index),
        gateway,
        source: address(&told.source)?,
        scope,
        is_onlink: told.flags & ONLINK != 0,
        metric,
        mtu: (told.mtu != 0).then_some(told.mtu),
        protocol: Route::STATIC,
    })
}

/// `10.0.0.0/8`, one address, or nothing for everywhere.
fn destination(text: &str, family: IPFamily) -> Result<Prefix, &'static str> {
    if text.is_empty() {
        let any = match family {
            IPFamily::v4 => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            IPFamily::v6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        return Ok(Prefix { ip: any, len: 0 });
    }
    let (ip, len) = text
        .split_once('/')
        .map_or((text, None), |(ip, len)| (ip, Some(len)));
    let ip: IpAddr = ip
        .parse()
        .map_err(|_| "dest is no prefix such as 10.0.0.0/8")?;
    let len = match len {
        None => width(ip),
        Some(len) => len
            .parse()
            .map_err(|_| "dest is no prefix such as 10.0.0.0/8")?,
    };
    if !is_of(ip, family) {
        return Err("dest is of another family than it says");
    }
    // A shorter prefix than the loopback's own loses against its route, which is in the local table.
    if len > width(ip) || ip.is_loopback() || ip.is_multicast() {
        return Err("dest is no prefix of other machines");
    }
    Ok(Prefix { ip, len })
}

/// The neighbours of a message.
pub(super) fn neighbours(
    neighbours: &[ARPNeighbor],
    cards: &HashMap<&str, u32>,
) -> Result<Vec<Neighbour>, GuestError> {
    if neighbours.len() > limit::MAX_NEIGHBOURS {
        let message = format!("more than {} neighbours", limit::MAX_NEIGHBOURS);
        return Err(invalid(PHASE, message));
    }
    let wanted = neighbours.iter().map(|told| {
        let refused = |what: &str| {
            let message = format!(
                "neighbour {} by {}: {what}",
                shown(&told.toIPAddress.address),
                shown(&told.device)
            );
            invalid(PHASE, message)
        };
        let index = cards.get(told.device.as_str());
        let index = *index.ok_or_else(|| refused("the guest has no such card"))?;
        let ip: IpAddr = told
            .toIPAddress
            .address
            .parse()
            .map_err(|_| refused("it is no IP address"))?;
        if !is_ours_to_give(ip) {
            return Err(refused("no neighbour has it"));
        }
        if told.state != PERMANENT || told.flags != 0 {
            return Err(refused(
                "only neighbours that stay (NUD_PERMANENT) can be set",
            ));
        }
        let mac = told
            .lladdr
            .parse()
            .map_err(|error| refused(&format!("lladdr: {error}")))?;
        Ok(Neighbour { index, ip, mac })
    });
    wanted.collect()
}

/// An interface as the contract has it.
pub(super) fn told_link(link: &Link, addresses: &[Address]) -> Interface {
    let own = addresses
        .iter()
        .filter(|address| address.index == link.index);
    let told = own.map(|address| IPAddress {
        family: family(address.ip).into(),
        address: address.ip.to_string(),
        mask: address.prefix.to_string(),
        ..Default::default()
    });
    Interface {
        device: link.name.clone(),
        name: link.name.clone(),
        IPAddresses: told.collect(),
        mtu: link.mtu.into(),
        hwAddr: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        raw_flags: if link.is_noarp { NOARP } else { 0 },
        ..Default::default()
    }
}

/// A route as the contract has it.
pub(super) fn told_route(route: &Route, links: &[Link]) -> types::Route {
    let device = links
        .iter()
        .find(|link| route.by == Destination::Link(link.index));
    let text = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    types::Route {
        dest: match route.to.len {
            0 => String::new(),
            _ => route.to.to_string(),
        },
        gateway: text(route.gateway),
        device: device.map(|link| link.name.clone()).unwrap_or_default(),
        source: text(route.source),
        scope: route.scope.into(),
        family: family(route.to.ip).into(),
        flags: if route.is_onlink { ONLINK } else { 0 },
        mtu: route.mtu.unwrap_or_default(),
        metric: route.metric,
        ..Default::default()
    }
}

/// Whether an address can be one of a card: the loopback's must stay the guest's own.
fn is_ours_to_give(ip: IpAddr) -> bool {
    let v4 = match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(ip) => ip.to_ipv4_mapped(),
    };
    let broadcast = v4.is_some_and(|ip| ip.is_broadcast() || ip.is_loopback());
    !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || broadcast)
}

fn is_of(ip: IpAddr, family: IPFamily) -> bool {
    self::family(ip) == family
}

fn family(ip: IpAddr) -> IPFamily {
    match ip {
        IpAddr::V4(_) => IPFamily::v4,
        IpAddr::V6(_) => IPFamily::v6,
    }
}

fn width(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// A text of the host in an error.
fn shown(text: &str) -> String {
    format!("{:?}", &text[..text.floor_char_boundary(MAX_SHOWN)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface() -> Interface {
        Interface {
            name: "eth0".to_owned(),
            hwAddr: "02:00:00:00:00:02".to_owned(),
            mtu: 1400,
            IPAddresses: vec![address("10.0.0.5", "24"), address("fd00::5", "64")],
            ..Default::default()
        }
    }

    fn address(ip: &str, mask: &str) -> IPAddress {
        IPAddress {
            family: family(ip.parse().unwrap()).into(),
            address: ip.to_owned(),
            mask: mask.to_owned(),
            ..Default::default()
        }
    }

    fn told(dest: &str, gateway: &str) -> types::Route {
        types::Route {
            dest: dest.to_owned(),
            gateway: gateway.to_owned(),
            device: "eth0".to_owned(),
            ..Default::default()
        }
    }

    fn cards() -> HashMap<&'static str, u32> {
        HashMap::from([("eth0", 2)])
    }

    #[test]
    fn a_card_is_what_the_message_says() {
        let card = card(&interface()).unwrap();
        assert_eq!((card.mac, card.mtu), (Mac([2, 0, 0, 0, 0, 2]), Some(1400)));
        let addresses: Vec<_> = card.addresses(7).map(|a| (a.index, a.prefix)).collect();
        assert_eq!(addresses, [(7, 24), (7, 64)]);
    }

    #[test]
    fn the_loopback_cannot_be_had() {
        let refused = |change: &dyn Fn(&mut Interface)| {
            let mut interface = interface();
            change(&mut interface);
            card(&interface).unwrap_err();
        };
        refused(&|i| i.name = "lo".into());
        refused(&|i| i.hwAddr = "00:00:00:00:00:00".into());
        for ip in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ] {
            refused(&|i| i.IPAddresses = vec![address(ip, "8")]);
        }
        for dest in ["127.0.0.0/8", "::1/128", "224.0.0.0/4"] {
            let mut told = told(dest, "");
            if dest.contains(':') {
                told.family = IPFamily::v6.into();
            }
            routes(&[told], &cards()).unwrap_err();
        }
        routes(&[told("10.0.0.0/8", "127.0.0.1")], &cards()).unwrap_err();
    }

    #[test]
    fn an_error_names_interface_or_route_and_what_is_wrong() {
        let mut wrong = interface();
        wrong.IPAddresses[0].mask = "33".into();
        let error = card(&wrong).unwrap_err();
        assert_eq!(
            error.message,
            "interface eth0: \"10.0.0.5\": mask is longer than the address"
        );
        let mut wrong = told("10.0.0.0/8", "");
        wrong.device = "eth9".into();
        let error = routes(&[wrong], &cards()).unwrap_err();
        assert_eq!(
            error.message,
            "route \"10.0.0.0/8\" by \"eth9\": the guest has no such card"
        );
    }

    #[test]
    fn malformed_messages_are_refused() {
        let refused = |change: &dyn Fn(&mut Interface)| {
            let mut interface = interface();
            change(&mut interface);
            card(&interface).unwrap_err();
        };
        refused(&|i| i.name = "a/b".into());
        refused(&|i| i.hwAddr.clear());
        refused(&|i| i.mtu = 1 << 33);
        refused(&|i| i.raw_flags = 1);
        refused(&|i| i.IPAddresses[1].family = IPFamily::v4.into());
        refused(&|i| i.IPAddresses[0].mask = "255.255.255.0".into());
        refused(&|i| i.IPAddresses = vec![address("10.0.0.1", "8"); limit::MAX_ADDRESSES + 1]);
        for dest in ["10.0.0.0/33", "x", "10.0.0.0/", "fd00::/64"] {
            routes(&[told(dest, "")], &cards()).unwrap_err();
        }
        routes(&[told("", "fd00::1")], &cards()).unwrap_err();
        let many = vec![told("10.0.0.0/8", ""); limit::MAX_ROUTES + 1];
        routes(&many, &cards()).unwrap_err();
    }

    #[test]
    fn routes_without_a_gateway_come_first_and_defaults_have_no_text() {
        let mut six = told("", "fe80::1");
        six.family = IPFamily::v6.into();
        let wanted = [told("", "10.0.0.1"), six, told("10.0.0.1", "")];
        let wanted = routes(&wanted, &cards()).unwrap();
        let texts: Vec<_> = wanted.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["10.0.0.1/32", "0.0.0.0/0 via 10.0.0.1", "::/0 via fe80::1"]
        );
        assert_eq!((wanted[1].metric, wanted[2].metric), (0, METRIC_V6));
    }

    #[test]
    fn only_neighbours_that_stay_are_set() {
        let told = ARPNeighbor {
            toIPAddress: Some(address("169.254.1.1", "32")).into(),
            device: "eth0".into(),
            lladdr: "ee:ee:ee:ee:ee:ee".into(),
            state: PERMANENT,
            ..Default::default()
        };
        let wanted = neighbours(std::slice::from_ref(&told), &cards()).unwrap();
        assert_eq!(wanted[0].index, 2);
        let mut wrong = told.clone();
        wrong.state = 2;
        neighbours(&[wrong], &cards()).unwrap_err();
        let many = vec![told; limit::MAX_NEIGHBOURS + 1];
        neighbours(&many, &cards()).unwrap_err();
    }
}
