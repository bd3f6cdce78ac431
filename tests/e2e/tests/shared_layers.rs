//! Containers of a pod whose images share layers: what one has pulled is neither fetched nor stored again for another,
//! and none sees what another writes.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use support::image::Recipe;
use support::need;
use support::pod::Pod;
use support::run::Finished;
use support::stage::{START, Stage, TOOLS};

#[test]
fn an_image_that_comes_later_fetches_only_what_is_new() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let one = stage.push(&Recipe::busybox("one").unwrap(), "one").unwrap();
    let two = stage.push(&Recipe::busybox("two").unwrap(), "two").unwrap();
    let init_data = stage.init_data();
    let config = stage.settings().write(&stage.state, "c.toml").unwrap();
    let empty = stage.empty();
    let before = stage.containerd.leftovers();
    let start = |container: &Pod<'_>| {
        let run = stage.run(container).unwrap();
        assert_eq!(run.code, 0, "{}\n{}", run.report(), stage.log_tail());
    };
    start(&member("pod", "sandbox", &config, &empty).with_init_data(&init_data));
    start(&member("first", "container", &config, &empty).from_image(&one));
    // A file and a directory of the shared layer, changed before another image uses it.
    let change = "echo changed > /etc/passwd && mv /tmp /moved && echo done";
    let changed = exec(&stage, "first", "change", &["/bin/sh", "-c", change]);
    assert_eq!(changed.stdout, "done\n", "{}", changed.report());

    start(&member("second", "container", &config, &empty).from_image(&two));
    let layers = |image: &str| layers(&stage, image);
    let (of_one, of_two) = (layers(&one), layers(&two));
    assert_eq!(of_one[0], of_two[0]);
    for layer in [&of_one[0], &of_one[1], &of_two[1]] {
        assert_eq!(fetched(&stage, layer), 1, "{}", stage.registry.log());
    }
    start(&member("third", "container", &config, &empty).from_image(&one));
    for layer in of_one.iter().chain(&of_two) {
        assert_eq!(fetched(&stage, layer), 1, "{}", stage.registry.log());
    }

    for (container, marker) in [("second", "two\n"), ("third", "one\n")] {
        let script =
            "cat /marker /etc/passwd && stat -c %h.%a /etc/passwd /tmp && test ! -e /moved";
        let said = exec(&stage, container, "look", &["/bin/sh", "-c", script]);
        assert_eq!(said.code, 0, "{}", said.report());
        assert!(said.stdout.starts_with(marker), "{}", said.report());
        assert!(said.stdout.contains("root:x:0:0"), "{}", said.report());
        // One name each, as in the image: who shares is not seen.
        assert!(said.stdout.contains("1.644\n"), "{}", said.report());
        assert!(said.stdout.ends_with(".1777\n"), "{}", said.report());
    }
    // Layers that a container uses stay when the one that brought them goes.
    stage.containerd.remove("first");
    let marker = exec(&stage, "third", "again", &["/bin/cat", "/marker"]);
    assert_eq!(marker.stdout, "one\n", "{}", marker.report());
    for id in ["third", "second", "pod"] {
        stage.containerd.remove(id);
    }
    stage.settled(&before).unwrap();
}

fn member<'a>(id: &'a str, kind: &str, config: &'a Path, empty: &'a Path) -> Pod<'a> {
    let kind = format!("io.kubernetes.cri.container-type={kind}");
    let pod = "io.kubernetes.cri.sandbox-id=pod";
    Pod::new(id, config, empty, &["/bin/sleep", "3600"])
        .flag(&["--annotation", &kind, "--annotation", pod])
        .flag(&["--detach", "--null-io"])
}

fn exec(stage: &Stage, container: &str, name: &str, words: &[&str]) -> Finished {
    let mut all = vec!["task", "exec", "--exec-id", name, container];
    all.extend(words);
    stage.containerd.ctr_within(START, &all).unwrap()
}

fn layers(stage: &Stage, image: &str) -> Vec<String> {
    let manifest = stage.registry.manifest(image).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers
        .map(|layer| layer["digest"].as_str().unwrap().to_owned())
        .collect()
}

/// How often the registry gave a blob. A guest in a TEE asks the node's mirror for encrypted layers only.
fn fetched(stage: &Stage, digest: &str) -> usize {
    let log = stage.registry.log();
    let lines = log.lines().filter(|line| line.contains("\"GET /v2/"));
    lines
        .filter(|line| line.contains(&format!("/blobs/{digest}")))
        .count()
}
