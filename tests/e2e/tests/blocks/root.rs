//! A root file system on a block device, as a snapshotter of devmapper or of block files gives it, and huge
//! pages. This containerd has no such snapshotter that works everywhere, and tells of huge pages only where the
//! host has their cgroup: so the shim is asked as containerd asks it, by a task with a mount of the device.

use std::fs;
use std::path::Path;
use std::process::Command;

use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, Mount, StartRequest, WaitRequest,
};
use containerd_shim_protos::ttrpc::context::with_timeout;
use containerd_shim_protos::{Client, TaskClient};
use serde_json::{Value, json};

use super::disk::{Disk, said};
use super::{LIMIT, Place, recipe};

const ID: &str = "on-a-disk";

/// The specification of a container of the pod that runs, for another one with a root of its own.
fn bundle(place: &Place<'_>, like: &Path, line: &str) -> String {
    let text = fs::read_to_string(like.join("config.json")).unwrap();
    let mut spec: Value = serde_json::from_str(&text).unwrap();
    spec["process"]["args"] = json!(["/bin/sh", "-c", line]);
    spec["root"] = json!({"path": "rootfs"});
    let Some(source) = place.huge else {
        return write(place, &spec);
    };
    spec["linux"]["resources"]["hugepageLimits"] = json!([
        {"pageSize": "2MB", "limit": 4 << 20}, {"pageSize": "1GB", "limit": 0},
    ]);
    let huge = json!({
        "destination": "/huge", "type": "bind", "source": source, "options": ["rbind", "rw"],
    });
    spec["mounts"].as_array_mut().unwrap().push(huge);
    write(place, &spec)
}

fn write(place: &Place<'_>, spec: &Value) -> String {
    let directory = place.state.dir("bundle").unwrap();
    fs::create_dir_all(directory.join("rootfs")).unwrap();
    fs::write(directory.join("config.json"), spec.to_string()).unwrap();
    directory.display().to_string()
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        type_: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|one| (*one).to_owned()).collect(),
        ..Default::default()
    }
}

/// A task of these mounts, from its creation to its deletion; its program ends with 7.
fn run(place: &Place<'_>, like: &str, line: &str, rootfs: Vec<Mount>) {
    let tasks = place
        .kube
        .state
        .path()
        .join("run/io.containerd.runtime.v2.task/k8s.io");
    let address = fs::read_to_string(tasks.join(place.pod).join("address")).unwrap();
    let client = TaskClient::new(Client::connect(address.trim()).unwrap());
    let context = || with_timeout(i64::try_from(LIMIT.as_nanos()).unwrap());
    let request = CreateTaskRequest {
        id: ID.to_owned(),
        bundle: bundle(place, &tasks.join(like), line),
        rootfs,
        ..Default::default()
    };
    client.create(context(), &request).unwrap();
    let start = StartRequest {
        id: ID.to_owned(),
        ..Default::default()
    };
    client.start(context(), &start).unwrap();
    let wait = WaitRequest {
        id: ID.to_owned(),
        ..Default::default()
    };
    assert_eq!(client.wait(context(), &wait).unwrap().exit_status, 7);
    let delete = DeleteRequest {
        id: ID.to_owned(),
        ..Default::default()
    };
    client.delete(context(), &delete).unwrap();
}

/// Layers as containerd's erofs snapshotter gives them: two images, and a file for what is written; then the same
/// where what is written stays in the guest.
pub(crate) fn layers_of_erofs_are_disks_of_the_vm(place: &Place<'_>, other: &str) {
    let image = |name: &str, root: &Path| {
        let file = place.state.path().join(name);
        said(
            Command::new("mkfs.erofs")
                .arg("--quiet")
                .arg(&file)
                .arg(root),
        );
        file.display().to_string()
    };
    let root = place.state.dir("lowest").unwrap();
    recipe().unpack(&root).unwrap();
    fs::write(root.join("hidden"), "below").unwrap();
    let lowest = image("lowest.erofs", &root);
    let above = place.state.dir("highest").unwrap();
    fs::write(above.join("hidden"), "above ").unwrap();
    let highest = image("highest.erofs", &above);
    let written = place.state.path().join("rwlayer.img");
    fs::File::create(&written)
        .unwrap()
        .set_len(16 << 20)
        .unwrap();
    said(Command::new("mkfs.ext4").arg("-q").arg(&written));
    let line =
        "cat /hidden /marker >/seen; echo mine >/hidden; grep ' / ' /proc/mounts >>/seen; exit 7";
    let layers = [&highest, &lowest].map(|file| mount("erofs", file, &["ro", "loop"]));
    let mut mounts = vec![mount(
        "ext4",
        &written.display().to_string(),
        &["rw", "loop"],
    )];
    mounts.extend(layers.clone());
    let overlay = [
        "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
        "workdir={{ mount 0 }}/work",
        "upperdir={{ mount 0 }}/upper",
        "lowerdir={{ overlay 1 2 }}",
    ];
    mounts.push(mount("format/mkdir/overlay", "overlay", &overlay));
    run(place, other, line, mounts);
    let cat = |path: &str| {
        let mut cat = Command::new("debugfs");
        let asked = format!("cat /upper/{path}");
        said(cat.args(["-R", &asked]).arg(&written)).stdout
    };
    let seen = cat("seen");
    assert!(seen.starts_with("above from containerd\n"), "{seen}");
    assert!(seen.contains(" / overlay rw"), "{seen}");
    assert_eq!(cat("hidden"), "mine\n");
    let own = [
        "workdir=/nowhere/work",
        "upperdir=/nowhere/fs",
        "lowerdir={{ overlay 0 1 }}",
    ];
    let mut mounts = layers.to_vec();
    mounts.push(mount("format/mkdir/overlay", "overlay", &own));
    let line = "echo mine >/hidden && test \"$(cat /hidden)\" = mine && exit 7";
    run(place, other, line, mounts);
    for file in [lowest, highest] {
        fs::remove_file(file).unwrap();
    }
}

pub(crate) fn a_root_file_system_on_a_device_is_mounted_in_the_guest(
    place: &Place<'_>,
    other: &str,
) {
    let root = place.state.dir("root-of-a-disk").unwrap();
    recipe().unpack(&root).unwrap();
    let disk = Disk::ext4(place.state, "root.img", &root).unwrap();
    let line = "cat /marker >/seen; grep ' / ' /proc/mounts >>/seen; \
        grep HugePages_Total /proc/meminfo >>/seen; \
        fallocate -l 4194304 /huge/x && echo taken >>/seen; \
        fallocate -l 2097152 /huge/y || echo full >>/seen; rm /huge/x /huge/y; exit 7";
    let device = disk.device.display().to_string();
    run(
        place,
        other,
        line,
        vec![mount("ext4", &device, &["noatime"])],
    );
    let seen = disk.file("/seen");
    assert!(seen.starts_with("from containerd\n"), "{seen}");
    assert_eq!(disk.file("/marker"), "from containerd\n", "it is whole");
    assert!(seen.contains("/dev/sd") && seen.contains("ext4"), "{seen}");
    if place.huge.is_none() {
        return;
    }
    let pages = |text: &str| text.split_ascii_whitespace().nth(1).map(str::to_owned);
    let line = |name: &str| seen.lines().find(|line| line.starts_with(name));
    assert_eq!(
        line("HugePages_Total").and_then(pages).as_deref(),
        Some("2"),
        "{seen}"
    );
    assert!(line("taken").is_some() && line("full").is_some(), "{seen}");
    // They went back to the memory with the container.
    let left = place.says(other, "grep HugePages_Total /proc/meminfo");
    assert_eq!(pages(&left).as_deref(), Some("0"));
}
