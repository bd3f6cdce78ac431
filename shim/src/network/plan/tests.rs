//! Networks as CNI leaves them, and what becomes of each.

use super::*;
use netlink::Prefix;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(index: u32, name: &str, kind: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: (!kind.is_empty()).then(|| kind.to_owned()),
        is_ethernet: true,
        is_loopback: false,
        is_up: true,
        is_noarp: false,
        mac: Some(Mac([2, 0, 0, 0, 0, u8::try_from(index).unwrap()])),
        mtu: 1500,
    }
}

fn address(index: u32, text: &str, prefix: u8) -> Address {
    Address {
        index,
        ip: ip(text),
        prefix,
        is_permanent: true,
        is_link_local: false,
    }
}

fn route(index: u32, to: &str, len: u8, gateway: Option<&str>) -> Route {
    Route {
        to: Prefix { ip: ip(to), len },
        by: Destination::Link(index),
        gateway: gateway.map(ip),
        source: None,
        scope: 0,
        is_onlink: false,
        metric: 0,
        mtu: None,
        protocol: 3,
    }
}

fn loopback() -> Link {
    Link {
        is_loopback: true,
        is_ethernet: false,
        mac: Some(Mac([0; 6])),
        mtu: 65_536,
        ..link(1, "lo", "")
    }
}

/// A bridge's veth with both families, as the distribution's plugins leave it.
fn bridged() -> Found {
    Found {
        links: vec![loopback(), link(2, "eth0", "veth")],
        addresses: vec![
            address(1, "127.0.0.1", 8),
            address(2, "10.88.0.5", 16),
            address(2, "fd00::5", 64),
            Address {
                is_link_local: true,
                ..address(2, "fe80::2", 64)
            },
        ],
        routes: vec![
            route(2, "0.0.0.0", 0, Some("10.88.0.1")),
            Route {
                protocol: Route::BY_KERNEL,
                ..route(2, "10.88.0.0", 16, None)
            },
            route(2, "::", 0, Some("fd00::1")),
        ],
        neighbours: Vec::new(),
    }
}

#[test]
fn a_veth_is_redirected_and_told_with_its_addresses_and_routes() {
    let plan = plan(&bridged()).unwrap();
    let [wire] = plan.wires.as_slice() else {
        panic!("{plan:?}");
    };
    assert_eq!((wire.name.as_str(), wire.way), ("eth0", Way::Redirect));
    let told = &plan.told.interfaces[0];
    assert_eq!(
        (told.hwAddr.as_str(), told.mtu),
        ("02:00:00:00:00:02", 1500)
    );
    let addresses: Vec<_> = told
        .IPAddresses
        .iter()
        .map(|address| format!("{}/{}", address.address, address.mask))
        .collect();
    assert_eq!(addresses, ["10.88.0.5/16", "fd00::5/64"]);
    let routes: Vec<_> = plan
        .told
        .routes
        .iter()
        .map(|route| (route.dest.as_str(), route.gateway.as_str()))
        .collect();
    assert_eq!(routes, [("", "10.88.0.1"), ("", "fd00::1")]);
    assert_eq!(plan.told.routes[1].family.value(), 1);
}

#[test]
fn an_empty_namespace_is_no_network() {
    let mut found = Found {
        links: vec![loopback()],
        ..Found::default()
    };
    assert_eq!(plan(&found).unwrap(), Plan::default());
    // The kernel's own tunnels are down.
    let mut tunnel = link(2, "gretap0", "gretap");
    tunnel.is_up = false;
    found.links.push(tunnel);
    assert_eq!(plan(&found).unwrap(), Plan::default());
}

#[test]
fn every_kind_that_frames_pass_through_has_its_way() {
    for (kind, way) in [
        ("veth", Way::Redirect),
        ("macvlan", Way::Redirect),
        ("ipvlan", Way::Redirect),
        ("vlan", Way::Redirect),
        ("macvtap", Way::Macvtap),
    ] {
        let mut found = bridged();
        found.links[1].kind = Some(kind.to_owned());
        assert_eq!(plan(&found).unwrap().wires[0].way, way, "{kind}");
    }
}

#[test]
fn an_interface_that_a_vm_cannot_have_is_named_with_the_fix() {
    for (kind, told) in [
        ("wireguard", "wireguard"),
        ("tun", "tun"),
        ("", "physical device"),
    ] {
        let mut found = bridged();
        found.links.push(link(3, "net1", kind));
        let error = plan(&found).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("interface net1 is a {told}")) && error.contains("veth"),
            "{error}"
        );
    }
    // Our own taps, which a second look finds, are none of CNI's.
    let mut found = bridged();
    found.links.push(link(3, "ctap2", "tun"));
    assert_eq!(plan(&found).unwrap().wires.len(), 1);
}

#[test]
fn the_second_of_two_equal_hardware_addresses_is_refused() {
    let mut found = bridged();
    let mut second = link(3, "net1", "ipvlan");
    second.mac = found.links[1].mac;
    found.links.push(second);
    let error = plan(&found).unwrap_err().to_string();
    assert!(error.contains("net1") && error.contains("eth0"), "{error}");
}

#[test]
fn several_interfaces_keep_their_order_names_and_own_addresses() {
    let mut found = bridged();
    found.links.push(Link {
        mtu: 9000,
        is_noarp: true,
        ..link(7, "net1", "macvlan")
    });
    found.addresses.push(address(7, "192.168.7.9", 24));
    found.routes.push(Route {
        metric: 200,
        mtu: Some(1400),
        is_onlink: true,
        source: Some(ip("192.168.7.9")),
        ..route(7, "172.16.0.0", 12, Some("169.254.1.1"))
    });
    found.routes.push(Route {
        scope: 253,
        ..route(7, "169.254.1.1", 32, None)
    });
    let plan = plan(&found).unwrap();
    assert_eq!(plan.wires[1].mtu, 9000);
    let second = &plan.told.interfaces[1];
    assert_eq!((second.name.as_str(), second.raw_flags), ("net1", NOARP));
    assert_eq!(second.IPAddresses.len(), 1);
    // What reaches the gateway comes before what needs it.
    let first = &plan.told.routes[0];
    assert_eq!((first.dest.as_str(), first.scope), ("169.254.1.1/32", 253));
    let last = plan.told.routes.last().unwrap();
    assert_eq!(
        (last.device.as_str(), last.flags, last.metric, last.mtu),
        ("net1", ONLINK, 200, 1400)
    );
}

#[test]
fn what_a_router_says_the_guest_hears_itself() {
    let mut found = bridged();
    found.addresses.push(Address {
        is_permanent: false,
        ..address(2, "2001:db8::5", 64)
    });
    found.routes[2].protocol = Route::BY_ROUTER;
    let plan = plan(&found).unwrap();
    assert_eq!(plan.told.interfaces[0].IPAddresses.len(), 2);
    assert_eq!(plan.told.routes.len(), 1);
    // A lease of IPv4 is heard by nobody but CNI.
    found.addresses[1].is_permanent = false;
    let plan = super::plan(&found).unwrap();
    assert_eq!(plan.told.interfaces[0].IPAddresses.len(), 2);
}

#[test]
fn neighbours_are_told_for_interfaces_of_the_vm() {
    let mut found = bridged();
    let neighbour = |index| Neighbour {
        index,
        ip: ip("169.254.1.1"),
        mac: Mac([0xee; 6]),
    };
    found.neighbours = vec![neighbour(2), neighbour(1)];
    let told = plan(&found).unwrap().told.neighbours;
    assert_eq!(told.len(), 1);
    assert_eq!(
        (
            told[0].device.as_str(),
            told[0].lladdr.as_str(),
            told[0].state
        ),
        ("eth0", "ee:ee:ee:ee:ee:ee", PERMANENT)
    );
    assert_eq!(told[0].toIPAddress.mask, "32");
}

#[test]
fn a_route_to_several_hops_is_refused_and_one_by_the_loopback_left_out() {
    let mut found = bridged();
    found.routes.push(route(1, "10.9.0.0", 16, None));
    assert_eq!(plan(&found).unwrap().told.routes.len(), 2);
    found.routes[0].by = Destination::Other;
    let error = plan(&found).unwrap_err().to_string();
    assert!(error.contains("0.0.0.0/0 via 10.88.0.1"), "{error}");
}

#[test]
fn every_list_has_its_end() {
    let mut many = bridged();
    for index in 3..=7 {
        many.links.push(link(index, &format!("net{index}"), "veth"));
    }
    assert!(matches!(
        plan(&many),
        Err(PlanError::TooMany { count: 6, .. })
    ));
    let mut many = bridged();
    many.routes = vec![route(2, "10.1.0.0", 16, None); limit::MAX_ROUTES + 1];
    assert!(matches!(plan(&many), Err(PlanError::TooMany { .. })));
    let mut many = bridged();
    many.addresses = vec![address(2, "10.1.0.1", 16); limit::MAX_ADDRESSES + 1];
    let error = plan(&many).unwrap_err().to_string();
    assert!(error.contains("addresses of interface eth0"), "{error}");
}

#[test]
fn an_odd_mtu_or_name_or_address_is_refused() {
    let mut found = bridged();
    found.links[1].mtu = 65_536;
    assert!(matches!(plan(&found), Err(PlanError::Mtu { .. })));
    let mut found = bridged();
    found.links[1].mac = None;
    assert!(matches!(plan(&found), Err(PlanError::NoMac { .. })));
    let mut found = bridged();
    found.links[1].name = "e th0".to_owned();
    assert!(matches!(plan(&found), Err(PlanError::Name { .. })));
}
