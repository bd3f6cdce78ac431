//! The parts work by themselves, before anything of the product is involved: a red test here means
//! the machine, not Cloister.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use support::broker::Broker;
use support::containerd::Containerd;
use support::image::{BUSYBOX, Recipe};
use support::registry::Registry;
use support::{State, host, need, product};

#[test]
fn containerd_runs_a_container_and_leaves_nothing() {
    if !need(&["containerd", "ctr", "runc", BUSYBOX]) {
        return;
    }
    let state = State::new().unwrap();
    let root = state.dir("rootfs").unwrap();
    Recipe::busybox("of the host")
        .unwrap()
        .unpack(&root)
        .unwrap();
    let containerd = Containerd::start(&state).unwrap();
    let before = containerd.leftovers();
    let root = root.to_string_lossy();
    let run = containerd
        .ctr_within(
            Duration::from_secs(20),
            &[
                "run", "--rm", "--rootfs", &root, "one", "/bin/cat", "/marker",
            ],
        )
        .unwrap();
    assert_eq!(run.stdout, "of the host\n", "{}", run.report());
    let after = containerd.leftovers();
    assert_eq!(after.since(&before), Vec::<String>::new());
    drop(containerd);
    assert!(host::processes_of(state.path()).is_empty());
    assert!(host::mounts_below(state.path()).is_empty());
}

#[test]
fn the_registry_serves_what_was_pushed_and_what_was_tampered_with() {
    if !need(&["docker-registry", "skopeo", BUSYBOX]) {
        return;
    }
    let state = State::new().unwrap();
    let registry = Registry::start(&state).unwrap();
    let layout = Recipe::busybox("one")
        .unwrap()
        .write(&state.path().join("layout"))
        .unwrap();
    let reference = registry.push(&layout, "a/b:latest", &[]).unwrap();
    let manifest = registry.manifest(&reference).unwrap();
    let layer = manifest["layers"][1]["digest"].as_str().unwrap();
    registry.tamper(layer, |bytes| bytes[20] ^= 1).unwrap();
    assert!(registry.tamper("sha256:00", |_| ()).is_err());
    assert!(registry.log().contains("PUT"), "{}", registry.log());
}

#[test]
fn the_broker_takes_keys_and_policies_from_its_owner() {
    if product::bin("kbs").is_err() {
        return support::skip("needs `kbs`; `make build` builds it");
    }
    let state = State::new().unwrap();
    let broker = Broker::start(&state).unwrap();
    let secret = state.file("secret", [7; 32]).unwrap();
    broker.put("default/key/one", &secret).unwrap();
    broker.release_only_to(&"0".repeat(64)).unwrap();
    assert!(broker.explain("nosuchticket").is_err());
    let listed = broker.owner(&["resource", "list"]).unwrap();
    assert!(
        listed.stdout.contains("default/key/one"),
        "{}",
        listed.report()
    );
}
