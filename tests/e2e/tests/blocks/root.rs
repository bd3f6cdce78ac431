//! A root file system on a block device, as a snapshotter of devmapper or of block files gives it, and huge
//! pages. This containerd has no such snapshotter that works everywhere, and tells of huge pages only where the
//! host has their cgroup: so the shim is asked as containerd asks it, by a task with a mount of the device.

use std::fs;
use std::path::Path;

use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, Mount, StartRequest, WaitRequest,
};
use containerd_shim_protos::ttrpc::context::with_timeout;
use containerd_shim_protos::{Client, TaskClient};
use serde_json::{Value, json};

use super::disk::Disk;
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

pub(crate) fn a_root_file_system_on_a_device_is_mounted_in_the_guest(
    place: &Place<'_>,
    other: &str,
) {
    let root = place.state.dir("root-of-a-disk").unwrap();
    recipe().unpack(&root).unwrap();
    let disk = Disk::ext4(place.state, "root.img", &root).unwrap();
    let tasks = place
        .kube
        .state
        .path()
        .join("run/io.containerd.runtime.v2.task/k8s.io");
    let address = fs::read_to_string(tasks.join(place.pod).join("address")).unwrap();
    let client = TaskClient::new(Client::connect(address.trim()).unwrap());
    let context = || with_timeout(i64::try_from(LIMIT.as_nanos()).unwrap());
    let line = "cat /marker >/seen; grep ' / ' /proc/mounts >>/seen; \
        grep HugePages_Total /proc/meminfo >>/seen; \
        fallocate -l 4194304 /huge/x && echo taken >>/seen; \
        fallocate -l 2097152 /huge/y || echo full >>/seen; rm /huge/x /huge/y; exit 7";
    let request = CreateTaskRequest {
        id: ID.to_owned(),
        bundle: bundle(place, &tasks.join(other), line),
        rootfs: vec![Mount {
            type_: "ext4".to_owned(),
            source: disk.device.display().to_string(),
            options: vec!["noatime".to_owned()],
            ..Default::default()
        }],
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
