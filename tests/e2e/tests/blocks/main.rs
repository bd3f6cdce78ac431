//! Block devices of the host as disks of a VM that runs: raw block volumes, direct volumes, root file systems.
//! The real containerd through its CRI socket, loop devices as the storage driver's, one VM for all.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod direct;
mod disk;
mod root;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use disk::{Disk, said};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::State;
use support::cri::{ContainerConfig, Device, PodSandboxConfig};
use support::image::{Entry, Recipe};
use support::kube::{self, Kube};
use support::pod::Settings;
use support::run::within;
use support::{need, skip};

const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Place<'a> {
    kube: &'a Kube,
    state: &'a State,
    pod: &'a str,
    config: &'a PodSandboxConfig,
    image: &'a str,
    /// The kubelet's directory of an emptyDir of huge pages, where the host has them.
    huge: Option<&'a Path>,
}

impl Place<'_> {
    fn container(&self, name: &str) -> ContainerConfig {
        kube::container(name, self.image, &["/bin/sleep", "3600"])
    }

    #[track_caller]
    fn start(&self, container: &ContainerConfig) -> String {
        let started = self.kube.start_in(self.pod, self.config, container);
        started.unwrap()
    }

    /// Why a container is not started.
    #[track_caller]
    fn refused(&self, container: &ContainerConfig) -> String {
        let cri = &self.kube.cri;
        let created = cri.create(self.pod, self.config, container).unwrap();
        let error = cri.of_container("StartContainer", &created).unwrap_err();
        self.remove(&created);
        error.to_string()
    }

    #[track_caller]
    fn says(&self, container: &str, line: &str) -> String {
        let said = self.kube.cri.exec(container, &["/bin/sh", "-c", line]);
        let said = said.unwrap();
        assert_eq!(said.code, 0, "{line}: {}{}", said.stdout, said.stderr);
        said.stdout
    }

    #[track_caller]
    fn remove(&self, container: &str) {
        let cri = &self.kube.cri;
        cri.of_container("RemoveContainer", container).unwrap();
    }
}

/// An emptyDir of huge pages as the kubelet makes it.
struct Huge(PathBuf);

impl Huge {
    fn new(state: &State) -> Option<Self> {
        let path = state.dir("kubelet/pods/0b9c-1/volumes/kubernetes.io~empty-dir/huge");
        let path = path.unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "hugetlbfs", "-o", "pagesize=2M", "nodev"]);
        let mounted = within(LIMIT, mount.arg(&path)).unwrap();
        mounted.ok().is_ok().then_some(Self(path))
    }
}

impl Drop for Huge {
    fn drop(&mut self) {
        let _ = within(LIMIT, Command::new("umount").arg(&self.0));
    }
}

fn with_device(container: &mut ContainerConfig, disk: &Path, path: &str, permissions: &str) {
    container.devices.push(Device {
        container_path: path.to_owned(),
        host_path: disk.display().to_string(),
        permissions: permissions.to_owned(),
        ..Default::default()
    });
}

/// busybox with what the cases call besides.
fn recipe() -> Recipe {
    let mut recipe = Recipe::busybox("from containerd").unwrap();
    for applet in ["fallocate", "grep", "head", "mknod"] {
        recipe.layers[0].push(Entry::Link(format!("bin/{applet}"), "busybox".into()));
    }
    recipe
}

#[test]
fn block_devices_of_the_host_are_disks_of_the_vm() {
    let tools = [
        "losetup",
        "mkfs.ext4",
        "mkfs.erofs",
        "e2fsck",
        "debugfs",
        "mount",
    ];
    if !need(&[&kube::TOOLS[..], &tools].concat()) {
        return;
    }
    let state = State::new().unwrap();
    let Some(raw) = Disk::new(&state, "raw.img") else {
        return skip("needs loop devices");
    };
    let huge = Huge::new(&state);
    if huge.is_none() {
        eprintln!("no hugetlbfs is here: huge pages are not tried");
    }
    let settings = Settings {
        kubelet: Some(state.path().join("kubelet")),
        ..Settings::plain()
    };
    let kube = Kube::start(&settings).unwrap();
    let image = kube.import(&recipe(), "box").unwrap();
    let before = kube.containerd.leftovers();
    let config = kube.pod("blocks");
    let pod = kube.run_pod(&config).unwrap();
    let place = Place {
        kube: &kube,
        state: &state,
        pod: &pod,
        config: &config,
        image: &image,
        huge: huge.as_ref().map(|huge| huge.0.as_path()),
    };
    let watcher = place.start(&place.container("watcher"));
    assert_eq!(place.says(&watcher, "ls /sys/block | grep sd || true"), "");
    a_raw_device_is_read_and_written(&place, &raw);
    a_device_is_read_only_where_it_is_said_to_be(&place, &raw);
    two_containers_have_one_disk(&place, &raw);
    direct::a_direct_volume_is_mounted_in_the_guest(&place);
    what_is_in_use_on_the_host_is_refused(&place);
    root::a_root_file_system_on_a_device_is_mounted_in_the_guest(&place, &watcher);
    root::layers_of_erofs_are_disks_of_the_vm(&place, &watcher);
    assert_eq!(
        place.says(&watcher, "ls /sys/block | grep sd || true"),
        "",
        "what is not used is gone"
    );
    place.remove(&watcher);
    a_vm_that_is_killed_holds_no_disk(&place, &raw);
    kube.remove_pod(&pod).unwrap();
    said(
        Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(&raw.device),
    );
    kube.settled(&before).unwrap();
}

fn a_raw_device_is_read_and_written(place: &Place<'_>, raw: &Disk) {
    raw.write(0, b"from the host");
    for round in 0..2 {
        let mut container = place.container("raw");
        with_device(&mut container, &raw.device, "/dev/xvda", "rwm");
        let id = place.start(&container);
        assert_eq!(place.says(&id, "head -c 13 /dev/xvda"), "from the host");
        assert_eq!(place.says(&id, "ls -l /dev/xvda")[..1], *"b");
        // Nothing waits for it to be written: what a container leaves is written when it goes.
        let line =
            format!("echo round {round} | dd of=/dev/xvda bs=4096 seek=1 conv=notrunc 2>/dev/null");
        place.says(&id, &line);
        place.remove(&id);
        assert_eq!(raw.at(4096, 8), format!("round {round}\n").as_bytes());
    }
}

fn a_device_is_read_only_where_it_is_said_to_be(place: &Place<'_>, raw: &Disk) {
    let mut container = place.container("reader");
    with_device(&mut container, &raw.device, "/dev/xvda", "r");
    let id = place.start(&container);
    assert_eq!(place.says(&id, "head -c 13 /dev/xvda"), "from the host");
    let line = "echo no | dd of=/dev/xvda conv=notrunc,fsync 2>/dev/null || echo refused";
    assert_eq!(place.says(&id, line), "refused\n");
    let mut writer = place.container("writer");
    with_device(&mut writer, &raw.device, "/dev/xvda", "rwm");
    let error = place.refused(&writer);
    assert!(error.contains("read-only"), "{error}");
    place.remove(&id);
    assert_eq!(raw.at(0, 13), b"from the host");
}

fn two_containers_have_one_disk(place: &Place<'_>, raw: &Disk) {
    let start = |name: &str, path: &str| {
        let mut container = place.container(name);
        with_device(&mut container, &raw.device, path, "rwm");
        place.start(&container)
    };
    let (one, two) = (start("one", "/dev/a"), start("two", "/dev/b"));
    place.says(
        &one,
        "echo of both | dd of=/dev/a conv=notrunc,fsync 2>/dev/null",
    );
    assert_eq!(place.says(&two, "head -c 7 /dev/b"), "of both");
    assert_eq!(place.says(&two, "ls /sys/block | grep -c sd"), "1\n");
    // One that is given it for reading, while its neighbours write.
    let mut reader = place.container("beside");
    with_device(&mut reader, &raw.device, "/dev/c", "r");
    let reader = place.start(&reader);
    assert_eq!(place.says(&reader, "head -c 7 /dev/c"), "of both");
    let line = "echo no 2>/dev/null | dd of=/dev/c conv=notrunc,fsync 2>/dev/null || echo refused";
    assert_eq!(place.says(&reader, line), "refused\n");
    place.remove(&reader);
    // A third one may make a node of it, and not open it.
    let third = place.start(&place.container("third"));
    let line = "mknod /x b 8 0 && head -c 7 /x 2>/dev/null || echo refused; head -c 1 /dev/zero";
    assert_eq!(place.says(&third, line), "refused\n\0");
    place.remove(&third);
    place.remove(&one);
    assert_eq!(place.says(&two, "head -c 7 /dev/b"), "of both");
    place.remove(&two);
    // Nobody holds it.
    let mut fence = Command::new("mkfs.ext4");
    said(fence.arg("-q").arg(&raw.device));
}

/// The last of the pod's cases: its VM dies with a disk.
fn a_vm_that_is_killed_holds_no_disk(place: &Place<'_>, raw: &Disk) {
    let mut container = place.container("killed");
    with_device(&mut container, &raw.device, "/dev/xvda", "rwm");
    let id = place.start(&container);
    place.says(&id, "head -c 1 /dev/xvda");
    let all = support::host::processes_of(place.kube.state.path());
    let is_vmm =
        |command: &str| command.starts_with("qemu-system") || command.contains("/qemu-system");
    let vmm = all.iter().find(|process| is_vmm(&process.command)).unwrap();
    kill(Pid::from_raw(vmm.pid), Signal::SIGKILL).unwrap();
    place.remove(&id);
}

fn what_is_in_use_on_the_host_is_refused(place: &Place<'_>) {
    let empty = place.state.dir("empty").unwrap();
    let disk = Disk::ext4(place.state, "used.img", &empty).unwrap();
    let at = place.state.dir("mounted").unwrap();
    said(Command::new("mount").arg(&disk.device).arg(&at));
    let mut container = place.container("used");
    with_device(&mut container, &disk.device, "/dev/xvda", "rwm");
    let error = place.refused(&container);
    said(Command::new("umount").arg(&at));
    assert!(
        error.contains("/dev/xvda") && error.contains("in use on the host"),
        "{error}"
    );
    let mut place_of = place.container("place");
    with_device(&mut place_of, &disk.device, "/data", "rwm");
    let error = place.refused(&place_of);
    assert!(error.contains("below /dev"), "{error}");
    fs::remove_dir(at).unwrap();
}
