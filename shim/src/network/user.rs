//! A network that needs neither a namespace nor root: QEMU's own, for a VM that a user runs by hand.
//!
//! It is asked for in the place of the namespace's path, by a word that is no path: pods' namespaces are
//! named by whoever starts the shim, and never by their owners. Connections are made by QEMU as the user
//! that it runs as, from the namespace that the shim runs in, so that a pod of Kubernetes never gets it.

use agent_api::types::{IPAddress, IPFamily, Interface, Route};
use hypervisor::Nic;

use super::{Attached, Told};
use crate::spec::Spec;

/// What stands in the place of the namespace's path.
pub const USER: &str = "user";
/// The guest's card: locally administered, as QEMU makes them.
const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
const DEVICE: &str = "eth0";
/// QEMU's addresses: the guest, the way out, the name server.
const ADDRESS: &str = "10.0.2.15";
const PREFIX: &str = "24";
const GATEWAY: &str = "10.0.2.2";
const NAME_SERVER: &str = "10.0.2.3";
const MTU: u64 = 1500;

/// Whether a specification asks for it.
pub(super) fn is_asked_for(spec: &Spec) -> bool {
    let mut namespaces = spec.linux.iter().flat_map(|linux| &linux.namespaces);
    namespaces.any(|namespace| namespace.kind == "network" && namespace.path == USER)
}

/// The lines of its resolv.conf.
pub(super) fn resolv_conf() -> Vec<String> {
    vec![format!("nameserver {NAME_SERVER}")]
}

/// The card, and what the guest makes of it. Nothing of the host is made.
pub(super) fn attach() -> Attached {
    let interface = Interface {
        device: DEVICE.to_owned(),
        name: DEVICE.to_owned(),
        IPAddresses: vec![IPAddress {
            family: IPFamily::v4.into(),
            address: ADDRESS.to_owned(),
            mask: PREFIX.to_owned(),
            ..Default::default()
        }],
        mtu: MTU,
        hwAddr: MAC.map(|byte| format!("{byte:02x}")).join(":"),
        ..Default::default()
    };
    let route = Route {
        gateway: GATEWAY.to_owned(),
        device: DEVICE.to_owned(),
        family: IPFamily::v4.into(),
        ..Default::default()
    };
    Attached {
        nics: vec![Nic::user(MAC)],
        told: Told {
            interfaces: vec![interface],
            routes: vec![route],
            neighbours: Vec::new(),
        },
        ..Attached::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_is_asked_for_by_a_word_that_is_no_path() {
        let spec = |path: &str| -> Spec {
            let namespaces = json!([{"type": "network", "path": path}]);
            serde_json::from_value(json!({"linux": {"namespaces": namespaces}})).unwrap()
        };
        assert!(is_asked_for(&spec(USER)));
        assert!(!is_asked_for(&spec("/run/netns/user")) && !is_asked_for(&Spec::default()));
        assert_eq!(
            super::super::resolv_conf(&spec(USER)),
            ["nameserver 10.0.2.3"]
        );
    }

    #[test]
    fn the_guest_has_one_card_with_the_address_that_qemu_gives() {
        let attached = attach();
        let interface = &attached.told.interfaces[0];
        assert_eq!(attached.nics, [Nic::user(MAC)]);
        assert_eq!(interface.hwAddr, "52:54:00:12:34:56");
        assert_eq!(interface.IPAddresses[0].address, ADDRESS);
    }
}
