//! Requests on a network namespace of the test's own, which has a pair of veth in the place of cards.

use std::process::Command;

use super::*;
use crate::gate::{Gate, Gated};
use agent_api::types::{ARPNeighbor, IPAddress, IPFamily};

/// Runs a test in a network namespace of its own, with `x0` and `x1`, the ends of one cable.
fn alone(test: impl FnOnce() + Send + 'static) {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root || Command::new("ip").arg("-V").output().is_err() {
        assert!(
            std::env::var_os("CLOISTER_NO_SKIP").is_none_or(|v| v != "1"),
            "CLOISTER_NO_SKIP=1, but this test needs root and `ip`"
        );
        return eprintln!("SKIPPED: needs root and `ip`");
    }
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let line = "link add x0 address 02:00:00:00:00:02 type veth peer name x1 \
            address 02:00:00:00:00:03";
        ip(line);
        test();
    });
    thread.join().unwrap();
}

fn ip(line: &str) -> String {
    let run = Command::new("ip")
        .args(line.split_whitespace())
        .output()
        .unwrap();
    assert!(run.status.success(), "ip {line}: {run:?}");
    String::from_utf8(run.stdout).unwrap()
}

fn allowed<R: Gated>(request: R) -> Allowed<R> {
    Gate::new(None, None).unwrap().admit(request).unwrap()
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

fn update(
    mac: &str,
    name: &str,
    addresses: &[(&str, &str)],
) -> Result<types::Interface, GuestError> {
    let addresses = addresses.iter().map(|(address, mask)| IPAddress {
        family: match address.contains(':') {
            true => IPFamily::v6,
            false => IPFamily::v4,
        }
        .into(),
        address: (*address).to_owned(),
        mask: (*mask).to_owned(),
        ..Default::default()
    });
    let interface = types::Interface {
        name: name.to_owned(),
        hwAddr: mac.to_owned(),
        mtu: 1400,
        IPAddresses: addresses.collect(),
        ..Default::default()
    };
    let request = agent::UpdateInterfaceRequest {
        interface: Some(interface).into(),
        ..Default::default()
    };
    wait(Network::default().update_interface(allowed(request)))
}

fn update_routes(routes: &[(&str, &str)]) -> Result<agent::Routes, GuestError> {
    let routes = routes.iter().map(|(dest, gateway)| types::Route {
        dest: (*dest).to_owned(),
        gateway: (*gateway).to_owned(),
        device: "eth0".to_owned(),
        family: match format!("{dest}{gateway}").contains(':') {
            true => IPFamily::v6,
            false => IPFamily::v4,
        }
        .into(),
        ..Default::default()
    });
    let routes = agent::Routes {
        Routes: routes.collect(),
        ..Default::default()
    };
    let request = agent::UpdateRoutesRequest {
        routes: Some(routes).into(),
        ..Default::default()
    };
    Network::default().update_routes(&allowed(request))
}

const ONE: &str = "02:00:00:00:00:02";
const TWO: &str = "02:00:00:00:00:03";

#[test]
fn a_card_is_found_by_its_address_and_becomes_what_was_asked_for() {
    alone(|| {
        let both = [("10.0.0.5", "24"), ("fd00::5", "64")];
        let answer = update(ONE, "eth0", &both).unwrap();
        assert_eq!((answer.name.as_str(), answer.mtu), ("eth0", 1400));
        let shown = ip("-oneline address show eth0");
        assert!(
            shown.contains("10.0.0.5/24 brd 10.0.0.255") && shown.contains("fd00::5/64"),
            "{shown}"
        );
        // The address can be used at once.
        assert!(!ip("-6 address show dev eth0 scope global").contains("tentative"));
        assert!(ip("link show eth0").contains("UP"));
        // What is said again holds; what is left out goes.
        update(ONE, "eth0", &both[..1]).unwrap();
        let shown = ip("-oneline address show eth0");
        assert!(
            shown.contains("10.0.0.5/24") && !shown.contains("fd00::5"),
            "{shown}"
        );
    });
}

#[test]
fn two_cards_can_swap_their_names() {
    alone(|| {
        update(ONE, "eth0", &[]).unwrap();
        update(TWO, "eth1", &[]).unwrap();
        update(ONE, "eth1", &[]).unwrap();
        update(TWO, "eth0", &[]).unwrap();
        assert!(ip("link show eth1").contains(ONE));
        assert!(ip("link show eth0").contains(TWO));
    });
}

#[test]
fn a_card_that_is_not_there_is_named() {
    alone(|| {
        let error = update("02:00:00:00:00:99", "eth0", &[]).unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.message.contains("02:00:00:00:00:99"), "{error}");
    });
}

#[test]
fn routes_are_replaced_and_those_of_the_kernel_stay() {
    alone(|| {
        update(TWO, "eth9", &[]).unwrap();
        update(ONE, "eth0", &[("10.0.0.5", "24"), ("fd00::5", "64")]).unwrap();
        update_routes(&[
            ("", "10.0.0.1"),
            ("172.16.0.0/12", "10.0.0.2"),
            ("", "fd00::1"),
        ])
        .unwrap();
        let shown = ip("route");
        assert!(shown.contains("default via 10.0.0.1 dev eth0"), "{shown}");
        assert!(shown.contains("172.16.0.0/12 via 10.0.0.2"), "{shown}");
        assert!(ip("-6 route").contains("default via fd00::1 dev eth0"));
        let answer = update_routes(&[("", "10.0.0.3")]).unwrap();
        let shown = ip("route");
        assert!(
            shown.contains("default via 10.0.0.3") && !shown.contains("172.16"),
            "{shown}"
        );
        assert!(
            shown.contains("10.0.0.0/24 dev eth0 proto kernel"),
            "{shown}"
        );
        assert!(!ip("-6 route").contains("default"));
        assert!(
            answer
                .Routes
                .iter()
                .any(|route| route.gateway == "10.0.0.3")
        );
        // Twice the same is no error.
        update_routes(&[("", "10.0.0.3")]).unwrap();
    });
}

#[test]
fn a_gateway_behind_a_route_of_its_own_is_reached_in_whatever_order() {
    alone(|| {
        update(TWO, "eth9", &[]).unwrap();
        update(ONE, "eth0", &[("10.0.0.5", "32")]).unwrap();
        update_routes(&[("", "169.254.1.1"), ("169.254.1.1/32", "")]).unwrap();
        let shown = ip("route");
        assert!(
            shown.contains("default via 169.254.1.1 dev eth0"),
            "{shown}"
        );
    });
}

#[test]
fn an_impossible_route_is_named_and_so_is_what_the_kernel_says() {
    alone(|| {
        update(ONE, "eth0", &[("10.0.0.5", "24")]).unwrap();
        let error = update_routes(&[("", "192.168.9.9")]).unwrap_err();
        assert!(
            error.message.contains("0.0.0.0/0 via 192.168.9.9"),
            "{error}"
        );
        assert!(error.message.contains("unreachable"), "{error}");
    });
}

#[test]
fn a_neighbour_is_known_without_being_asked() {
    alone(|| {
        update(ONE, "eth0", &[("10.0.0.5", "24")]).unwrap();
        let neighbour = ARPNeighbor {
            toIPAddress: Some(IPAddress {
                address: "10.0.0.1".to_owned(),
                ..Default::default()
            })
            .into(),
            device: "eth0".to_owned(),
            lladdr: TWO.to_owned(),
            state: 0x80,
            ..Default::default()
        };
        let neighbors = agent::ARPNeighbors {
            ARPNeighbors: vec![neighbour],
            ..Default::default()
        };
        let request = agent::AddARPNeighborsRequest {
            neighbors: Some(neighbors).into(),
            ..Default::default()
        };
        Network::default()
            .add_neighbours(&allowed(request))
            .unwrap();
        let shown = ip("neighbour");
        assert!(
            shown.contains(&format!("10.0.0.1 dev eth0 lladdr {TWO} PERMANENT")),
            "{shown}"
        );
    });
}

#[test]
fn interfaces_and_routes_are_listed() {
    alone(|| {
        update(ONE, "eth0", &[("10.0.0.5", "24")]).unwrap();
        let network = Network::default();
        let list = network
            .interfaces(&allowed(agent::ListInterfacesRequest::new()))
            .unwrap();
        let eth0 = list
            .Interfaces
            .iter()
            .find(|one| one.name == "eth0")
            .unwrap();
        assert_eq!(eth0.hwAddr, ONE);
        assert!(eth0.IPAddresses.iter().any(|one| one.address == "10.0.0.5"));
        network
            .routes(&allowed(agent::ListRoutesRequest::new()))
            .unwrap();
    });
}
