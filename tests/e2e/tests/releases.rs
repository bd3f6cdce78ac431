//! Later releases of containerd than the machine's: a snapshotter of a runtime handler alone, and encrypted images
//! through the plain container runtime interface.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use support::broker::Broker;
use support::image::Recipe;
use support::init_data::{ALLOW_ALL, ANNOTATION, InitData};
use support::kube::{self, Ground, Kube};
use support::pod::Settings;
use support::registry::Registry;
use support::snapshotter::{FOR_HANDLER, Snapshotter, for_handler_of_2};
use support::stage::{KEY_ID, encrypted_into};
use support::{need, product, skip};

/// The runtime handler of confidential pods, which has a snapshotter of its own.
const CONFIDENTIAL: &str = "cloister-sample";
const SECRET: &str = "only-the-guest-may-read-this";

#[test]
fn containerd_1_7_leaves_images_of_one_handler_to_guests() {
    leaves_images_of_one_handler_to_guests("trixie", "1.7.");
}

#[test]
fn containerd_2_leaves_images_of_one_handler_to_guests() {
    leaves_images_of_one_handler_to_guests("testing", "2.");
}

fn leaves_images_of_one_handler_to_guests(suite: &str, version: &str) {
    if !need(&kube::TOOLS) || !need(&["docker-registry", "skopeo"]) {
        return;
    }
    let Some(programs) = product::containerd_of(suite) else {
        return skip("needs later containerds in .cache; `.ci/setup` fetches them");
    };
    let mut ground = Ground::new().unwrap();
    ground.programs = programs;
    // All parts are in the node's network, where pods reach them through the relay.
    ground.node.enter().unwrap();
    let registry = Registry::start(&ground.state).unwrap();
    let broker = Broker::start(&ground.state).unwrap();
    let snapshotter = Snapshotter::start(&ground.state, &["*/pause:*"]).unwrap();
    let hosts = registry.hosts(&ground.state).unwrap();
    let confidential = Settings {
        guest_pull: false,
        ..Settings::confidential(&[registry.address(), broker.address()])
    };
    let confidential = confidential.write(&ground.state, "tee.toml").unwrap();
    let mut more =
        snapshotter.known(&hosts) + &kube::handler(CONFIDENTIAL, &confidential, FOR_HANDLER);
    if version.starts_with('2') {
        more += &for_handler_of_2(CONFIDENTIAL);
    }
    let kube = Kube::on(ground, &Settings::plain(), &more).unwrap();
    let said = kube.containerd.ctr(&["version"]).unwrap().ok().unwrap();
    assert!(
        said.stdout.contains(&format!("Version:  {version}")),
        "{}",
        said.stdout
    );

    let key = kube.state.file("image.key", [7_u8; 32]).unwrap();
    let recipe = Recipe::busybox(SECRET).unwrap();
    let image = encrypted_into(&registry, &kube.state, &recipe, "secret", &key, KEY_ID).unwrap();
    let init_data = InitData::new(Some(&broker), Some(&registry), ALLOW_ALL);
    broker.put(KEY_ID, &key).unwrap();
    broker.release_only_to(&init_data.digest()).unwrap();
    let mut config = kube.pod("secret");
    let annotation = init_data.annotation().unwrap();
    config.annotations.insert(ANNOTATION.to_owned(), annotation);
    let before = kube.containerd.leftovers();

    // Of another handler's pod it is the host's to unpack, which has no key.
    assert!(kube.cri.pull_for(&image, &config, kube::HANDLER).is_err());
    kube.cri.pull_for(&image, &config, CONFIDENTIAL).unwrap();
    let pod = kube.run_pod_by(CONFIDENTIAL, &config).unwrap();
    let container = kube::container("secret", &image, &["/bin/sleep", "3600"]);
    let container = kube.start_in(&pod, &config, &container).unwrap();
    let said = kube.cri.exec(&container, &["/bin/cat", "/marker"]).unwrap();
    assert_eq!(said.ok(), format!("{SECRET}\n"));
    kube.remove_pod(&pod).unwrap();
    kube.settled(&before).unwrap();
}
