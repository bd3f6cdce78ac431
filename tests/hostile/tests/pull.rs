//! An image that must not run, a registry or broker that lies, refuses or is gone: each ends in an
//! error with its own stable code, within seconds, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use support::image::{Entry, Recipe};
use support::init_data::InitData;
use support::need;
use support::pod::{Pod, Settings};
use support::stage::{KEY_ID, Stage, TOOLS};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn what_must_not_run_is_refused_with_its_own_code() {
    if !need(&TOOLS) {
        return;
    }
    let mut stage = Stage::confidential().unwrap();
    let key = stage.key("image.key").unwrap();
    let recipe = Recipe::busybox("never seen").unwrap();
    let image = stage
        .push_encrypted(&recipe, "secret", &key, KEY_ID)
        .unwrap();
    let init_data = stage.init_data();

    // Nothing is released before the owner stores a key, and then only under a policy. A guest that
    // the policy refuses does not even learn whether there is one.
    refuse(&stage, "no-policy", &image, &init_data, "broker-denied");
    stage
        .broker()
        .unwrap()
        .release_only_to(&init_data.digest())
        .unwrap();
    let line = refuse(&stage, "no-key", &image, &init_data, "resource-not-found");
    assert!(line.contains(KEY_ID), "which key? {line}");
    stage.broker().unwrap().put(KEY_ID, &key).unwrap();
    let deny = stage.state.file(
        "deny.rego",
        include_str!("../../../policies/release/deny_all.rego"),
    );
    stage
        .broker()
        .unwrap()
        .release_policy(&deny.unwrap())
        .unwrap();
    let line = refuse(&stage, "denied", &image, &init_data, "broker-denied");
    assert!(line.contains("(ticket "), "{line}");

    // The right policy and the wrong key: the layers do not open.
    let wrong = stage.key("wrong.key").unwrap();
    stage.broker().unwrap().put(KEY_ID, &wrong).unwrap();
    stage
        .broker()
        .unwrap()
        .release_only_to(&init_data.digest())
        .unwrap();
    refuse(&stage, "wrong-key", &image, &init_data, "key-unwrap-failed");
    stage.broker().unwrap().put(KEY_ID, &key).unwrap();

    // A registry that changes a layer, or does not have the image.
    let manifest = stage.registry.manifest(&image).unwrap();
    let layer = manifest["layers"][1]["digest"].as_str().unwrap();
    stage
        .registry
        .tamper(layer, |bytes| bytes[7] ^= 0x10)
        .unwrap();
    let line = refuse(&stage, "tampered", &image, &init_data, "digest-mismatch");
    assert!(line.contains(&layer[..19]), "which layer? {line}");
    let missing = format!("{}/no/such:image", stage.registry.address());
    refuse(&stage, "missing", &missing, &init_data, "image-not-found");

    // The host's relay, a broker with another identity, no broker at all.
    let elsewhere = refuse(
        &stage,
        "elsewhere",
        "127.0.0.1:9/a:b",
        &init_data,
        "host-not-allowed",
    );
    assert!(elsewhere.contains("relay.allow"), "what to do? {elsewhere}");
    let other = support::tls::identity(&stage.state, "other")
        .unwrap()
        .cert_pem;
    let root = stage.broker().unwrap().root_pem().to_owned();
    let mut untrusting = init_data.clone();
    untrusting.toml = untrusting.toml.replace(root.trim(), other.trim());
    assert_ne!(untrusting.toml, init_data.toml);
    refuse(&stage, "untrusted", &image, &untrusting, "broker-untrusted");
    stage.broker.as_mut().unwrap().crash().unwrap();
    refuse(&stage, "gone", &image, &init_data, "broker-unreachable");
}

#[test]
fn an_image_larger_than_the_guest_is_refused() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let mut recipe = Recipe::busybox("big").unwrap();
    // Zeros compress to nothing: the registry is not what this fills.
    recipe
        .layers
        .push(vec![Entry::File("big".into(), 0o644, vec![0; 256 << 20])]);
    let image = stage.push(&recipe, "big").unwrap();
    let init_data = stage.init_data();
    let small = Settings {
        memory: 256,
        ..stage.settings()
    };
    let line = refuse_with(
        &stage,
        &small,
        "full",
        &image,
        &init_data,
        "guest-disk-full",
    );
    assert!(line.contains("pull"), "{line}");
}

fn refuse(stage: &Stage, id: &str, image: &str, init_data: &InitData, code: &str) -> String {
    refuse_with(stage, &stage.settings(), id, image, init_data, code)
}

fn refuse_with(
    stage: &Stage,
    settings: &Settings,
    id: &str,
    image: &str,
    init_data: &InitData,
    code: &str,
) -> String {
    let config = settings.write(&stage.state, "c.toml").unwrap();
    let empty = stage.empty();
    let pod = Pod::new(id, &config, &empty, &["/bin/cat", "/marker"])
        .from_image(image)
        .with_init_data(init_data)
        .flag(&["--rm"]);
    let line = stage.refuse(&pod, code, SOON).unwrap();
    println!("{id}: {line}");
    line
}
