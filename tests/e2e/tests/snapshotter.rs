//! Images that guests pull, asked for as Kubernetes does: containerd has their manifests and no layer of them, so that
//! it needs no key for those that are encrypted; and what others run on the same node.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::{Duration, Instant};

use support::broker::Broker;
use support::cri::PodSandboxConfig;
use support::image::Recipe;
use support::init_data::{ALLOW_ALL, ANNOTATION, InitData};
use support::kube::{self, Ground, Kube};
use support::need;
use support::pod::Settings;
use support::registry::Registry;
use support::run::{Finished, Service};
use support::snapshotter::{NAME, Snapshotter};
use support::stage::{KEY_ID, START, encrypted_into};

const RUNC: &str = "io.containerd.runc.v2";
/// The runtime handler of confidential pods.
const CONFIDENTIAL: &str = "cloister-sample";
const SECRET: &str = "only-the-guest-may-read-this";
/// What containerd may take to see a service again, and to collect what nobody refers to.
const SETTLE: Duration = Duration::from_secs(20);

struct Place {
    kube: Kube,
    registry: Registry,
    /// The same images without TLS, which is what guests in plain VMs ask of the loopback.
    clear: (Service, String),
    broker: Broker,
    snapshotter: Snapshotter,
}

impl Place {
    fn start() -> Self {
        let ground = Ground::new().unwrap();
        // All parts are in the node's network, where pods reach them through the relay.
        ground.node.enter().unwrap();
        let registry = Registry::start(&ground.state).unwrap();
        let broker = Broker::start(&ground.state).unwrap();
        let unpack = ["*/pause:*", "*/listed:*"];
        let snapshotter = Snapshotter::start(&ground.state, &unpack).unwrap();
        let hosts = registry.hosts(&ground.state).unwrap();
        let clear = registry.in_the_clear(&ground.state).unwrap();
        let settings = Settings {
            allow: vec![clear.1.clone()],
            ..Settings::plain()
        };
        let confidential = Settings {
            guest_pull: false,
            ..Settings::confidential(&[registry.address(), broker.address()])
        };
        let confidential = confidential.write(&ground.state, "tee.toml").unwrap();
        let more =
            snapshotter.for_all_pods(&hosts) + &kube::handler(CONFIDENTIAL, &confidential, "");
        let kube = Kube::on(ground, &settings, &more).unwrap();
        Self {
            kube,
            registry,
            clear,
            broker,
            snapshotter,
        }
    }

    fn push(&self, name: &str, marker: &str) -> String {
        let layout = self.kube.state.path().join(format!("layout-{name}"));
        let layout = Recipe::busybox(marker).unwrap().write(&layout).unwrap();
        let name = format!("{name}:latest");
        self.registry.push(&layout, &name, &[]).unwrap();
        format!("{}/{name}", self.clear.1)
    }

    fn ctr(&self, words: &[&str]) -> Finished {
        self.kube.containerd.ctr_within(START, words).unwrap()
    }

    /// The lines of a `ctr` command that must succeed.
    fn lines(&self, words: &[&str]) -> Vec<String> {
        let said = self.ctr(words).ok().unwrap().stdout;
        said.lines().map(str::to_owned).collect()
    }

    /// Digests of the layers of an image.
    fn layers(&self, image: &str) -> Vec<String> {
        let manifest = self.registry.manifest(image).unwrap();
        let layers = manifest["layers"].as_array().unwrap().iter();
        layers
            .map(|layer| layer["digest"].as_str().unwrap().to_owned())
            .collect()
    }

    /// How many layers of an image containerd has.
    fn fetched(&self, image: &str) -> usize {
        let blobs = self.lines(&["content", "ls", "-q"]);
        assert!(!blobs.is_empty());
        let layers = self.layers(image);
        layers.iter().filter(|layer| blobs.contains(layer)).count()
    }

    /// SIGKILL to the snapshotter; containerd finds the next one by itself.
    fn die_and_revive(&mut self) {
        self.snapshotter.crash().unwrap();
        self.revive();
    }

    fn revive(&mut self) {
        self.snapshotter.revive().unwrap();
        let since = Instant::now();
        while self.ctr(&["snapshots", "--snapshotter", NAME, "ls"]).code != 0 {
            assert!(since.elapsed() < SETTLE, "containerd does not see it");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What a container of a pod says.
    fn says(&self, pod: &str, config: &PodSandboxConfig, name: &str, image: &str) -> String {
        let container = kube::container(name, image, &["/bin/sleep", "3600"]);
        let id = self.kube.start_in(pod, config, &container).unwrap();
        let said = self.kube.cri.exec(&id, &["/bin/cat", "/marker"]).unwrap();
        self.kube.cri.of_container("RemoveContainer", &id).unwrap();
        said.ok()
    }
}

#[test]
fn containerd_needs_neither_layers_nor_keys_of_what_guests_pull() {
    if !need(&kube::TOOLS) || !need(&["docker-registry", "skopeo", "runc"]) {
        return;
    }
    let mut place = Place::start();
    let app = place.push("app", "in the guest");
    let before = place.kube.containerd.leftovers();

    place.kube.cri.pull(&app).unwrap();
    assert_eq!(place.fetched(&app), 0);
    for layer in place.layers(&app) {
        let asked = format!("\"GET /v2/app/blobs/{layer}");
        assert!(
            !place.clear.0.log().contains(&asked),
            "{layer} was asked for"
        );
    }
    place.die_and_revive();

    let config = place.kube.pod("one");
    let pod = place.kube.run_pod(&config).unwrap();
    assert_eq!(place.says(&pod, &config, "app", &app), "in the guest\n");
    an_image_belongs_to_the_containers_own_users(&place, &pod, &app);
    place.die_and_revive();
    images_that_were_there_before_run(&place, &pod, &config);
    place.kube.remove_pod(&pod).unwrap();
    // The one that runs is not the one that ran before.
    place.snapshotter.crash().unwrap();
    place.kube.settled(&before).unwrap();
    place.revive();

    an_encrypted_image_needs_no_key_on_the_host(&place);
    other_runtimes_get_what_is_listed_and_a_reason_for_the_rest(&place, &app);
    nothing_stays_of_what_is_deleted(&place);
}

/// Its layers came with another snapshotter; it is the same image for the guest.
fn images_that_were_there_before_run(place: &Place, pod: &str, config: &PodSandboxConfig) {
    let image = place.push("before", "was there before");
    let pulled = ["image", "pull", "--plain-http", &image];
    place.ctr(&pulled).ok().unwrap();
    assert_eq!(place.fetched(&image), place.layers(&image).len());
    let since = Instant::now();
    while !place.kube.cri.has_image(&image).unwrap() {
        assert!(since.elapsed() < SETTLE, "the CRI plugin has no {image}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = place.says(pod, config, "before", &image);
    assert_eq!(said, "was there before\n");
    // The lower layer the guest had of the other image.
    let layer = place.layers(&image).pop().unwrap();
    let asked = format!("\"GET /v2/before/blobs/{layer}");
    let times = place.clear.0.log().matches(&asked).count();
    assert_eq!(times, 2, "containerd pulls {layer}, and so does the guest");
}

fn an_encrypted_image_needs_no_key_on_the_host(place: &Place) {
    let state = &place.kube.state;
    let key = state.file("image.key", [7_u8; 32]).unwrap();
    let recipe = Recipe::busybox(SECRET).unwrap();
    let image = encrypted_into(&place.registry, state, &recipe, "secret", &key, KEY_ID).unwrap();
    let init_data = InitData::new(Some(&place.broker), Some(&place.registry), ALLOW_ALL);
    place.broker.put(KEY_ID, &key).unwrap();
    place.broker.release_only_to(&init_data.digest()).unwrap();

    place.kube.cri.pull(&image).unwrap();
    assert_eq!(place.fetched(&image), 0);
    let mut config = place.kube.pod("secret");
    let annotation = init_data.annotation().unwrap();
    config.annotations.insert(ANNOTATION.to_owned(), annotation);
    let before = place.kube.containerd.leftovers();
    let pod = place.kube.run_pod_by(CONFIDENTIAL, &config).unwrap();
    let container = kube::container("secret", &image, &["/bin/sleep", "3600"]);
    let container = place.kube.start_in(&pod, &config, &container).unwrap();
    let cat = ["/bin/cat", "/marker", "/etc/resolv.conf"];
    let said = place.kube.cri.exec(&container, &cat).unwrap().ok();
    // What the CRI plugin gives to each container is there too.
    assert!(said.starts_with(&format!("{SECRET}\n")), "{said}");
    assert!(said.contains("nameserver 10.96.0.10"), "{said}");
    assert_eq!(place.fetched(&image), 0);
    place.kube.remove_pod(&pod).unwrap();
    place.kube.settled(&before).unwrap();
}

fn other_runtimes_get_what_is_listed_and_a_reason_for_the_rest(place: &Place, app: &str) {
    let run = |image: &str, id: &str| {
        place.ctr(&[
            "run",
            "--rm",
            "--runtime",
            RUNC,
            "--snapshotter",
            NAME,
            image,
            id,
            "/bin/cat",
            "/marker",
        ])
    };
    let refused = run(app, "refused");
    assert_ne!(refused.code, 0);
    for named in [app, RUNC, "left to guests", "unpack"] {
        assert!(refused.stderr.contains(named), "{}", refused.report());
    }
    let listed = place.push("listed", "on the host");
    // The lower layer is the other image's too, and was left to guests with it.
    let shared = place.kube.cri.pull(&listed).unwrap_err().to_string();
    assert!(shared.contains("left to guests"), "{shared}");
    nothing_stays_of_what_is_deleted(place);
    place.kube.cri.pull(&listed).unwrap();
    assert_eq!(place.fetched(&listed), place.layers(&listed).len());
    let said = run(&listed, "listed");
    assert_eq!(said.stdout, "on the host\n", "{}", said.report());
}

fn nothing_stays_of_what_is_deleted(place: &Place) {
    let images = place.lines(&["image", "ls", "-q"]);
    for image in &images {
        place.ctr(&["image", "rm", "--sync", image]).ok().unwrap();
    }
    let since = Instant::now();
    loop {
        let known = place.lines(&["snapshots", "--snapshotter", NAME, "ls"]);
        let trees = std::fs::read_dir(place.snapshotter.trees())
            .unwrap()
            .count();
        // The first line names the columns.
        if known.len() == 1 && trees == 0 {
            return;
        }
        let log = place.snapshotter.log();
        assert!(since.elapsed() < SETTLE, "{known:?}, {trees} trees\n{log}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The snapshotter leaves owners to the guest, which has the layers once, for users of either kind.
fn an_image_belongs_to_the_containers_own_users(place: &Place, pod: &str, image: &str) {
    let sandbox = format!("io.kubernetes.cri.sandbox-id={pod}");
    let name = format!("io.kubernetes.cri.image-name={image}");
    let line = "cat /proc/self/uid_map; stat -c %u:%g /marker /bin; \
        echo x > /written && stat -c %u /written; mv /bin/ls /bin/list && stat -c %u /bin/list";
    let said = place.ctr(&[
        "run",
        "--rm",
        "--snapshotter",
        NAME,
        "--runtime",
        support::pod::RUNTIME,
        "--annotation",
        "io.kubernetes.cri.container-type=container",
        "--annotation",
        &sandbox,
        "--annotation",
        &name,
        "--uidmap",
        "0:65536:1000",
        "--gidmap",
        "0:131072:1000",
        "--remap-labels",
        image,
        "users",
        "/bin/sh",
        "-c",
        line,
    ]);
    assert_eq!(said.code, 0, "{}", said.report());
    let words: Vec<_> = said.stdout.split_whitespace().collect();
    let wanted = ["0", "65536", "1000", "0:0", "0:0", "0", "0"];
    assert_eq!(words, wanted, "{}", said.report());
}
