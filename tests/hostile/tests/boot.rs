//! A VM that does not come up: each way ends in an error that names phase, cause and code, within
//! seconds, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::PathBuf;
use std::time::Duration;

use hostile::cpio;
use support::image::BUSYBOX;
use support::need;
use support::pod::{Pod, Settings};
use support::stage::Stage;

/// A boot that fails must say so in this time; a kernel that panics must first come up.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_vm_that_does_not_come_up_is_an_error_with_a_cause() {
    if !need(&[
        "containerd",
        "ctr",
        "docker-registry",
        "qemu-system-x86_64",
        BUSYBOX,
    ]) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let settings = stage.settings();
    let file = |name: &str, bytes: &[u8]| Some(stage.state.file(name, bytes).unwrap());

    let bad_kernel = Settings {
        kernel: file("kernel", b"no kernel at all"),
        ..settings.clone()
    };
    let line = refuse(&stage, "bad-kernel", &bad_kernel, "vmm-exited");
    assert!(line.contains(": vmm: "), "the phase is missing: {line}");

    let no_init = Settings {
        initrd: file("none.cpio", &cpio::archive(&[])),
        ..settings.clone()
    };
    let line = refuse(&stage, "panic", &no_init, "guest-panicked");
    assert!(line.contains(": kernel: "), "the phase is missing: {line}");

    let busybox = std::fs::read(BUSYBOX).unwrap();
    let mute = cpio::archive(&[
        cpio::Entry::Dir("bin"),
        cpio::Entry::File("bin/busybox", 0o755, &busybox),
        cpio::Entry::File(
            "init",
            0o755,
            b"#!/bin/busybox sh\nexec /bin/busybox sleep 3600\n",
        ),
    ]);
    let mute = Settings {
        initrd: file("mute.cpio", &mute),
        boot_ms: 6_000,
        ..settings.clone()
    };
    let line = refuse(&stage, "mute", &mute, "agent-unreachable");
    assert!(line.contains(": agent: "), "the phase is missing: {line}");

    let absent = Settings {
        kernel: Some(PathBuf::from("/nonexistent/vmlinux")),
        ..settings
    };
    let line = refuse(&stage, "absent", &absent, "invalid-argument");
    assert!(line.contains("/nonexistent/vmlinux"), "{line}");
}

fn refuse(stage: &Stage, id: &str, settings: &Settings, code: &str) -> String {
    let config = settings.write(&stage.state, "c.toml").unwrap();
    let (empty, init_data) = (stage.empty(), stage.init_data());
    let pod = Pod::new(id, &config, &empty, &["/bin/true"])
        .from_image("127.0.0.1:1/none:latest")
        .with_init_data(&init_data)
        .flag(&["--rm"]);
    let line = stage.refuse(&pod, code, SOON).unwrap();
    println!("{id}: {line}");
    line
}
