//! A pod whose guest has no room left: the next container is refused by name, and what runs runs on.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use support::image::Recipe;
use support::need;
use support::pod::Pod;
use support::stage::{START, Stage, TOOLS};

/// Fills the guest's file system with one file, then with empty ones, as far as the kernel lets.
const FILL: &str = "dd if=/dev/zero of=/fill bs=1048576 2>/dev/null; \
    dd if=/dev/zero of=/rest bs=1 2>/dev/null; \
    n=0; while : > /f$n; do n=$((n+1)); [ $n -lt 1000 ] || break; done 2>/dev/null; \
    cat /marker";

#[test]
fn a_container_that_finds_no_room_is_refused_by_name() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let image = stage
        .push(&Recipe::busybox("still here").unwrap(), "plain")
        .unwrap();
    let init_data = stage.init_data();
    let config = stage.settings().write(&stage.state, "c.toml").unwrap();
    let empty = stage.empty();
    let before = stage.containerd.leftovers();
    let of_pod = |id, kind: &str| {
        let kind = format!("io.kubernetes.cri.container-type={kind}");
        let pod = "io.kubernetes.cri.sandbox-id=pod";
        Pod::new(id, &config, &empty, &["/bin/sleep", "3600"])
            .from_image(&image)
            .flag(&["--annotation", &kind, "--annotation", pod])
            .flag(&["--detach", "--null-io"])
    };
    for container in [
        of_pod("pod", "sandbox").with_init_data(&init_data),
        of_pod("app", "container"),
    ] {
        let run = stage.run(&container).unwrap();
        assert_eq!(run.code, 0, "{}\n{}", run.report(), stage.log_tail());
    }
    let fill = [
        "task",
        "exec",
        "--exec-id",
        "fill",
        "app",
        "/bin/sh",
        "-c",
        FILL,
    ];
    let filled = stage.containerd.ctr_within(START, &fill).unwrap();
    assert_eq!(filled.stdout, "still here\n", "{}", filled.report());

    for id in ["late", "later"] {
        let error = stage
            .refuse(&of_pod(id, "container"), "guest-disk-full", START)
            .unwrap();
        println!("{error}");
    }
    let again = [
        "task",
        "exec",
        "--exec-id",
        "cat",
        "app",
        "/bin/cat",
        "/marker",
    ];
    let again = stage.containerd.ctr_within(START, &again).unwrap();
    assert_eq!(again.stdout, "still here\n", "{}", again.report());
    for id in ["app", "pod"] {
        stage.containerd.remove(id);
    }
    stage.settled(&before).unwrap();
}
