//! Direct volumes: what a storage driver describes in Kata's file is mounted by the guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::cri::{ContainerConfig, Mount};
use support::product;
use support::run::Finished;

use super::disk::{BYTES, Disk};
use super::{LIMIT, Place};

const ROOT: &str = "/run/kata-containers/shared/direct-volumes";
const GROUP: u32 = 2000;

/// A description, which is gone with this.
struct Described(PathBuf);

impl Described {
    fn new(volume: &Path, description: &Value) -> Self {
        let directory = Path::new(ROOT).join(name_of(volume));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("mountInfo.json");
        fs::write(file, description.to_string()).unwrap();
        Self(directory)
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The directory of a volume: base64 of its path, in the letters of URLs.
fn name_of(volume: &Path) -> String {
    let mut encode = Command::new("base64");
    let path = volume.to_str().unwrap().as_bytes();
    let text = support::run::with_input(LIMIT, encode.arg("-w0"), path);
    let text = text.unwrap().ok().unwrap().stdout;
    text.trim().replace('+', "-").replace('/', "_")
}

fn with_mount(mut container: ContainerConfig, volume: &Path, readonly: bool) -> ContainerConfig {
    container.mounts.push(Mount {
        container_path: "/data".to_owned(),
        host_path: volume.display().to_string(),
        readonly,
        ..Default::default()
    });
    container
}

fn direct_volume(place: &Place<'_>, verb: &str, volume: &Path, more: &[&str]) -> Finished {
    let mut command = Command::new(product::bin("cloister").unwrap());
    command
        .args(["direct-volume", verb, "--volume-path"])
        .arg(volume)
        .args(more)
        .env("CLOISTER_STATE_ROOT", place.kube.containerd.shim_state());
    support::run::within(LIMIT, &mut command).unwrap()
}

/// A storage driver makes the device larger, and then the file system by the product's own command.
fn it_grows_while_it_is_used(place: &Place<'_>, disk: &Disk, volume: &Path) {
    let total = || {
        let told = direct_volume(place, "stats", volume, &[])
            .ok()
            .unwrap()
            .stdout;
        let told: Value = serde_json::from_str(&told).unwrap();
        told["usage"][0]["total"].as_u64().unwrap()
    };
    assert!(total() < BYTES);
    let size = (2 * BYTES).to_string();
    let early = direct_volume(place, "resize", volume, &["--size", &size]);
    assert!(
        early.code != 0 && early.stderr.contains("make that larger first"),
        "{}",
        early.report()
    );
    disk.grow(2 * BYTES);
    direct_volume(place, "resize", volume, &["--size", &size])
        .ok()
        .unwrap();
    assert!(total() > BYTES * 3 / 2);
}

pub(crate) fn a_direct_volume_is_mounted_in_the_guest(place: &Place<'_>) {
    let content = place.state.dir("content").unwrap();
    fs::create_dir(content.join("d")).unwrap();
    fs::write(content.join("d/note"), "from the driver").unwrap();
    let disk = Disk::ext4(place.state, "volume.img", &content).unwrap();
    let volume = place
        .state
        .dir("volumes/kubernetes.io~csi/pv/mount")
        .unwrap();
    let description = json!({
        "volume-type": "block", "device": disk.device, "fstype": "ext4",
        "metadata": {"fsGroup": GROUP.to_string(), "fsGroupChangePolicy": "Always"},
        "options": ["noatime"],
    });
    let described = Described::new(&volume, &description);
    let container = |name: &str| with_mount(place.container(name), &volume, false);
    let main = place.start(&container("main"));
    assert_eq!(place.says(&main, "cat /data/d/note"), "from the driver");
    let mounts = place.says(&main, "grep ' /data ' /proc/mounts");
    assert!(
        mounts.contains("ext4 rw") && mounts.contains("noatime"),
        "{mounts}"
    );
    let group = place.says(&main, "stat -c '%g %a' /data /data/d/note");
    assert_eq!(group, format!("{GROUP} 2775\n{GROUP} 664\n"));
    let side = place.start(&container("side"));
    place.says(&main, "echo from the guest >/data/d/back");
    assert_eq!(place.says(&side, "cat /data/d/back"), "from the guest\n");
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 0, "on the host");
    // One that only reads, beside those that write.
    let reader = place.start(&with_mount(place.container("reader"), &volume, true));
    assert_eq!(place.says(&reader, "cat /data/d/back"), "from the guest\n");
    let line = "echo no 2>/dev/null >/data/d/back || echo refused";
    assert_eq!(place.says(&reader, line), "refused\n");
    it_grows_while_it_is_used(place, &disk, &volume);
    // Nobody on the host mounts it meanwhile.
    let mut mount = Command::new("mount");
    mount.arg(&disk.device).arg(place.state.path());
    let mounted = support::run::within(LIMIT, &mut mount).unwrap();
    assert_ne!(mounted.code, 0, "{}", mounted.report());
    place.remove(&reader);
    place.remove(&main);
    assert_eq!(place.says(&side, "cat /data/d/back"), "from the guest\n");
    place.remove(&side);
    assert_eq!(disk.file("/d/back"), "from the guest\n");

    // A disk that its driver gives for reading alone.
    let mut read_only = description.clone();
    read_only["options"] = json!(["ro"]);
    drop(described);
    let described = Described::new(&volume, &read_only);
    let reader = place.start(&container("reader-alone"));
    assert_eq!(place.says(&reader, "cat /data/d/back"), "from the guest\n");
    assert_eq!(place.says(&reader, line), "refused\n");
    assert_eq!(place.says(&reader, "cat /sys/block/sd*/ro"), "1\n");
    place.remove(&reader);

    fs::create_dir(volume.join("part")).unwrap();
    let error = place.refused(&with_mount(
        place.container("part"),
        &volume.join("part"),
        false,
    ));
    fs::remove_dir(volume.join("part")).unwrap();
    assert!(error.contains("subPath"), "{error}");
    drop(described);
    let unknown = json!({"volume-type": "vfiovol", "device": disk.device, "fstype": "ext4"});
    let _described = Described::new(&volume, &unknown);
    let error = place.refused(&container("unknown"));
    assert!(
        error.contains("vfiovol") && error.contains("/data"),
        "{error}"
    );
}
