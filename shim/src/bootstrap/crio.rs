//! What CRI-O's runtime type `vm` sends, held against what is read of it: the command line and environment of its
//! `internal/oci/runtime_vm.go`, and `config.json` of a sandbox and of a container with the annotations of its
//! `server/sandbox_run_linux.go` and `internal/factory/container`. It makes no difference between bundles: each
//! container is started by `start` in its own, with the FIFO `log` beside `config.json`.

use std::ffi::OsString;
use std::path::Path;

use containerd_shim_protos::types::mount::Mount;

use super::asked::Asked;
use crate::config::Config;
use crate::network;
use crate::rootfs::{self, Source};
use crate::spec::group::{self, Role};
use crate::spec::pod_name::PodName;
use crate::spec::{Spec, refuse};

const POD: &str = "8f1c3a7be0d94f5a86d2b1c0e7f3a9d4c5b6a7988f1c3a7be0d94f5a86d2b1c0";
const CONTAINER: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9";

fn sandbox() -> Spec {
    let json = serde_json::json!({
        "ociVersion": "1.2.0", "hostname": "web",
        "root": {"path": "/var/lib/containers/storage/overlay/aa/merged", "readonly": true},
        "process": {"args": ["/pause"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "annotations": {
            "io.kubernetes.cri-o.Annotations": "{\"io.katacontainers.config.hypervisor.default_memory\":\"600\"}",
            "io.kubernetes.cri-o.ContainerID": POD, "io.kubernetes.cri-o.ContainerType": "sandbox",
            "io.kubernetes.cri-o.HostName": "web", "io.kubernetes.cri-o.Image": "registry.k8s.io/pause:3.10",
            "io.kubernetes.cri-o.ImageName": "registry.k8s.io/pause:3.10",
            "io.kubernetes.cri-o.KubeName": "web", "io.kubernetes.cri-o.Name": "k8s_web_shop_uid_0",
            "io.kubernetes.cri-o.Namespace": "shop", "io.kubernetes.cri-o.RuntimeHandler": "cloister",
            "io.kubernetes.cri-o.SandboxID": POD, "io.kubernetes.cri-o.SandboxName": "k8s_web_shop_uid_0",
            "io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "shop",
            "io.kubernetes.cri-o.ShmPath": "/run/containers/storage/overlay-containers/x/userdata/shm",
        },
        "linux": {
            "cgroupsPath": format!("kubepods-podu.slice:crio:{POD}"),
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "network", "path": "/var/run/netns/6f0c"},
                {"type": "ipc", "path": "/var/run/ipcns/6f0c"}, {"type": "uts", "path": "/var/run/utsns/6f0c"},
            ],
        },
    });
    serde_json::from_value(json).unwrap()
}

fn container() -> Spec {
    let json = serde_json::json!({
        "ociVersion": "1.2.0", "root": {"path": "/var/lib/containers/storage/overlay/bb/merged"},
        "process": {"args": ["/bin/app"], "cwd": "/", "user": {"uid": 1000, "gid": 1000}},
        "mounts": [
            {"destination": "/dev/shm", "type": "bind", "options": ["rw", "bind"],
             "source": "/run/containers/storage/overlay-containers/x/userdata/shm"},
            {"destination": "/etc/resolv.conf", "type": "bind", "options": ["rw", "bind", "nodev", "nosuid", "noexec"],
             "source": "/run/containers/storage/overlay-containers/x/userdata/resolv.conf"},
        ],
        "annotations": {
            "io.kubernetes.container.name": "app", "io.kubernetes.cri-o.ContainerType": "container",
            "io.kubernetes.cri-o.ContainerID": CONTAINER, "io.kubernetes.cri-o.Image": "docker.io/library/app:1",
            "io.kubernetes.cri-o.ImageName": "docker.io/library/app:1",
            "io.kubernetes.cri-o.ImageRef": "5f0c3a7be0d94f5a86d2b1c0e7f3a9d4",
            "io.kubernetes.cri-o.Name": "k8s_app_web_shop_uid_0", "io.kubernetes.cri-o.SandboxID": POD,
            "io.kubernetes.cri-o.SandboxName": "k8s_web_shop_uid_0",
            "io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "shop",
        },
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "network", "path": "/var/run/netns/6f0c"},
                {"type": "ipc", "path": "/var/run/ipcns/6f0c"}, {"type": "uts", "path": "/var/run/utsns/6f0c"},
                {"type": "cgroup"},
            ],
        },
    });
    serde_json::from_value(json).unwrap()
}

/// containerd's own library runs the shim for CRI-O, with an empty address.
#[test]
fn start_is_answered_by_an_address_and_nothing_else() {
    let words = [
        "-namespace",
        "default",
        "-address",
        "",
        "-publish-binary",
        "/usr/bin/crio",
        "-id",
        POD,
        "-debug",
        "start",
    ];
    let words: Vec<_> = words.iter().map(OsString::from).collect();
    let flags = containerd_shim::parse(&words).unwrap();
    super::check(&flags).unwrap();
    assert_eq!((flags.action.as_str(), flags.id.as_str()), ("start", POD));
    assert!(flags.debug && flags.address.is_empty() && flags.bundle.is_empty());
    let asked = Asked::read(&[], &flags.id, &flags.namespace).unwrap();
    assert_eq!(asked, Asked::default());
    assert_eq!(asked.reply("unix:///run/x".to_owned()), b"unix:///run/x");
}

#[test]
fn a_sandbox_and_its_containers_are_one_pod() {
    let (sandbox, container) = (sandbox(), container());
    assert_eq!(group::role(&sandbox.annotations), Ok(Role::Sandbox));
    let member = Role::Member {
        sandbox: POD.to_owned(),
    };
    assert_eq!(group::role(&container.annotations), Ok(member));
    for spec in [&sandbox, &container] {
        refuse::check(spec).unwrap();
        assert!(PodName::of(&spec.annotations).is_some());
    }
    let network = network::wanted(&sandbox).unwrap();
    assert_eq!(network.as_deref(), Some(Path::new("/var/run/netns/6f0c")));
    assert_eq!(
        group::image(&container.annotations),
        Some("docker.io/library/app:1")
    );
}

/// Without `runtime_pull_image` there are no mounts: storage has mounted the root, and `root.path` is absolute.
#[test]
fn the_image_is_the_hosts_or_the_guest_pulls_it() {
    let container = container();
    let member = group::role(&container.annotations).unwrap();
    let choose = |mounts: &[Mount]| {
        rootfs::choose(&Config::default(), &member, &container.annotations, mounts).unwrap()
    };
    assert_eq!(choose(&[]), Source::Host);
    let volume = serde_json::json!({
        "volume_type": "image_guest_pull", "source": "docker.io/library/app:1", "fs_type": "overlay_fs",
        "image_pull": {"metadata": container.annotations},
    });
    let encoded = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        volume.to_string(),
    );
    let pulled = choose(&[Mount {
        type_: "fuse.nydus-overlayfs".to_owned(),
        options: vec![format!("io.katacontainers.volume={encoded}")],
        ..Mount::default()
    }]);
    let Source::GuestPull { image, .. } = pulled else {
        panic!("{pulled:?}")
    };
    assert_eq!(image, "docker.io/library/app:1");
}
