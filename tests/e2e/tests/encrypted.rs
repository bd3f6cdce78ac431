//! The main job: an encrypted image runs attested in a VM, and only there.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::PathBuf;
use std::time::Duration;

use support::image::Recipe;
use support::need;
use support::pod::Pod;
use support::stage::{KEY_ID, Stage, TOOLS};
use support::timeline::PHASES;

const MARKER: &str = "only-the-guest-may-read-this";
const REFUSAL: Duration = Duration::from_secs(60);

#[test]
fn an_encrypted_image_runs_attested_and_one_changed_byte_of_init_data_is_refused() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::confidential().unwrap();
    let key = stage.key("image.key").unwrap();
    let image = stage
        .push_encrypted(&Recipe::busybox(MARKER).unwrap(), "secret", &key, KEY_ID)
        .unwrap();
    let init_data = stage.init_data();
    let broker = stage.broker().unwrap();
    broker.put(KEY_ID, &key).unwrap();
    broker.release_only_to(&init_data.digest()).unwrap();
    let key_bytes = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    std::fs::remove_dir_all(stage.state.path().join("layout-secret")).unwrap();

    let before = stage.containerd.leftovers();
    let config = stage.settings().write(&stage.state, "c.toml").unwrap();
    let empty = stage.empty();
    let pod = Pod::new("enc", &config, &empty, &["/bin/cat", "/marker"])
        .from_image(&image)
        .flag(&["--rm"]);

    // The container runs, and says what only the decrypted layer holds.
    let run = stage.run(&pod.clone().with_init_data(&init_data)).unwrap();
    assert_eq!(
        run.stdout,
        format!("{MARKER}\n"),
        "{}\n{}",
        run.report(),
        stage.log_tail()
    );
    assert_eq!(run.code, 0);

    // The start is written down, phase by phase.
    let timeline = stage.timeline("enc").unwrap();
    let named: Vec<_> = timeline.phases.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(named, PHASES, "{timeline:?}");
    assert!(
        u128::from(timeline.total()) <= run.took.as_millis(),
        "{timeline:?} {:?}",
        run.took
    );

    // The host has neither plaintext nor key: not afterwards, and not while the container runs.
    stage.settled(&before).unwrap();
    let needles = [MARKER.as_bytes(), key_bytes.as_slice()];
    assert_eq!(stage.search_host(&needles).unwrap(), Vec::<PathBuf>::new());
    let held = Pod::new("held", &config, &empty, &["/bin/sleep", "600"])
        .from_image(&image)
        .with_init_data(&init_data)
        .flag(&["--detach", "--null-io"]);
    nothing_leaks_while_it_runs(&stage, &held, &needles);
    stage.settled(&before).unwrap();

    // One byte of init-data changed: the host learns a code and a ticket, the owner the cause.
    let changed = init_data.with_one_byte_changed();
    assert_eq!(changed.toml.len(), init_data.toml.len());
    let line = stage
        .refuse(
            &pod.clone().with_init_data(&changed),
            "broker-denied",
            REFUSAL,
        )
        .unwrap();
    assert!(
        !line.contains(&changed.digest()),
        "the cause crossed the host: {line}"
    );
    let (_, ticket) = line.split_once("(ticket ").unwrap();
    let (ticket, _) = ticket.split_once(')').unwrap();
    let explained = broker.explain(ticket).unwrap();
    for part in [&init_data.digest(), &changed.digest()] {
        assert!(
            explained.contains(part),
            "{part} is missing in:\n{explained}"
        );
    }

    // And the first pod still runs: a refusal spoils nothing.
    let again = stage.run(&pod.with_init_data(&init_data)).unwrap();
    assert_eq!(again.stdout, format!("{MARKER}\n"), "{}", again.report());
    later_pods_had_the_layers_from_the_nodes_mirror(&stage, &image);
}

/// Three pods pulled it. Only the one that came first needed the registry; a second, where the first was gone before
/// its offer had arrived.
fn later_pods_had_the_layers_from_the_nodes_mirror(stage: &Stage, image: &str) {
    let manifest = stage.registry.manifest(image).unwrap();
    let log = stage.registry.log();
    for layer in manifest["layers"].as_array().unwrap() {
        let digest = layer["digest"].as_str().unwrap();
        let request = format!("\"GET /v2/secret/blobs/{digest}");
        let pulls = log.matches(&request).count();
        assert!((1..=2).contains(&pulls), "{pulls} of {digest} in:\n{log}");
    }
}

/// The container can read what it came with, and the host cannot, while it runs.
fn nothing_leaks_while_it_runs(stage: &Stage, held: &Pod<'_>, needles: &[&[u8]]) {
    let started = stage.run(held).unwrap();
    let report = started.report();
    assert_eq!(started.code, 0, "{report}\n{}", stage.log_tail());
    let words = ["/bin/cat", "/marker"];
    let exec = ["task", "exec", "--exec-id", "e", held.id];
    let read = stage.containerd.ctr(&[&exec[..], &words].concat()).unwrap();
    assert_eq!(read.stdout, format!("{MARKER}\n"), "{}", read.report());
    assert_eq!(stage.search_host(needles).unwrap(), Vec::<PathBuf>::new());
    stage.containerd.remove(held.id);
}
