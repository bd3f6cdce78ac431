//! `cloister image` as a person runs it, and interrupts it.

#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use image_rs::Digest;
use image_rs::layout::Layout;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const CLOISTER: &str = env!("CARGO_BIN_EXE_cloister");
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// So large that a run is not done before it is seen.
const LAYER_BYTES: usize = 192 << 20;

fn write(layout: &Layout, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let mut blob = layout.start_blob().unwrap();
    blob.write(bytes).unwrap();
    blob.finish(&digest).unwrap();
    digest
}

fn image(layout: &Layout, layer: &[u8]) {
    let layer_digest = write(layout, layer);
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    });
    let config = config.to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": write(layout, config.as_bytes()), "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer_digest, "size": layer.len(),
        }],
    });
    let manifest = manifest.to_string();
    layout
        .write_manifest(MANIFEST, manifest.as_bytes())
        .unwrap();
}

fn cloister(directory: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(CLOISTER);
    command
        .args(["image"])
        .args(args)
        .args(["--platform", "linux/amd64"]);
    command.current_dir(directory).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits until the program writes to a file that has no name, and stops it there.
fn stop_in_the_middle(child: &Child, directory: &Path) {
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let start = directory.canonicalize().unwrap().join("#");
    let start = start.as_os_str().as_encoded_bytes();
    loop {
        let list = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let links = list.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        let mut unnamed = links.filter(|to| to.as_os_str().as_encoded_bytes().starts_with(start));
        if unnamed.next().is_some() {
            return kill(pid, Signal::SIGSTOP).unwrap();
        }
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        assert!(!state.contains(") Z "), "it was done before it was seen");
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => names.extend(self::names(&path)),
            false => names.push(path.display().to_string()),
        }
    }
    names
}

#[test]
fn a_signal_ends_a_run_between_layouts_and_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    std::fs::write(here.join("kek"), [7; 32]).unwrap();
    let plain = Layout::new(here.join("plain"), Some("t".to_owned()));
    image(&plain, &vec![1; LAYER_BYTES]);
    let id = ["--key-id", "kbs:///a/b/c", "--key-file", "kek"];
    let encrypt = |to| [["encrypt", "oci:plain:t", to].as_slice(), &id].concat();
    let mut done = cloister(here, &encrypt("oci:sealed:t"));
    assert!(done.wait().unwrap().success());
    std::fs::create_dir(here.join("out")).unwrap();
    std::fs::create_dir(here.join("out/d")).unwrap();
    let runs = [
        (Signal::SIGINT, "oci:out/d:t", "out/d"),
        (Signal::SIGTERM, "oci-archive:out/a.tar:t", "out"),
        (Signal::SIGHUP, "oci:out/d:t", "out/d"),
        // Nobody can answer this one.
        (Signal::SIGKILL, "oci-archive:out/a.tar:t", "out"),
    ];
    for (signal, to, watched) in runs {
        let mut run = cloister(here, &["decrypt", "oci:sealed:t", to, "--key-file", "kek"]);
        stop_in_the_middle(&run, &here.join(watched));
        let pid = Pid::from_raw(run.id().try_into().unwrap());
        kill(pid, signal).unwrap();
        kill(pid, Signal::SIGCONT).unwrap();
        let status = run.wait().unwrap();
        let (mut out, mut error) = (String::new(), String::new());
        run.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        run.stderr
            .take()
            .unwrap()
            .read_to_string(&mut error)
            .unwrap();
        assert!(
            !status.success() && out.is_empty(),
            "{signal}: {status} {out}"
        );
        assert!(
            signal == Signal::SIGKILL || error.contains("interrupted"),
            "{signal}: {error}"
        );
        assert_eq!(names(&here.join("out")), Vec::<String>::new(), "{signal}");
    }
}
