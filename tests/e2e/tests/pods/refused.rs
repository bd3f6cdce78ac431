//! What cannot be in a VM is refused in Kubernetes' words, and leaves nothing.

use support::cri::{Device, Mount, MountPropagation, NamespaceMode, NamespaceOption};
use support::kube::HANDLER;

use super::Place;

pub(crate) fn what_a_vm_has_not_is_refused_by_name(place: &Place<'_>) {
    pods(place);
    containers(place);
}

fn pods(place: &Place<'_>) {
    let node = || NamespaceMode::NODE.into();
    let none = NamespaceOption::default();
    let options = [
        (
            "hostPID",
            NamespaceOption {
                pid: node(),
                ..none.clone()
            },
        ),
        (
            "hostIPC",
            NamespaceOption {
                ipc: node(),
                ..none.clone()
            },
        ),
        (
            "hostNetwork",
            NamespaceOption {
                network: node(),
                ..none
            },
        ),
    ];
    for (field, option) in options {
        let mut config = place.kube.pod(&field.to_ascii_lowercase());
        let linux = config.linux.mut_or_insert_default();
        linux
            .security_context
            .mut_or_insert_default()
            .namespace_options = Some(option).into();
        let error = place.kube.cri.run_pod(&config, HANDLER).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
    }
}

fn containers(place: &Place<'_>) {
    let mut device = place.shell("device", "true");
    device.devices.push(Device {
        container_path: "/dev/of-the-host".to_owned(),
        host_path: "/dev/null".to_owned(),
        permissions: "rw".to_owned(),
        ..Default::default()
    });
    let mut follows = place.shell("follows", "true");
    follows.mounts.push(Mount {
        container_path: "/follows".to_owned(),
        host_path: place.kube.log_directory().display().to_string(),
        propagation: MountPropagation::PROPAGATION_BIDIRECTIONAL.into(),
        ..Default::default()
    });
    for (container, field) in [(device, "/dev/of-the-host"), (follows, "mountPropagation")] {
        let cri = &place.kube.cri;
        // containerd itself asks for a shared mount; where it has none, it says so first.
        let error = match cri.create(place.pod, place.config, &container) {
            Err(error) => error,
            Ok(created) => {
                let error = cri.of_container("StartContainer", &created).unwrap_err();
                place.remove(&created);
                error
            }
        };
        let told = error.to_string();
        assert!(told.contains(field) || told.contains("shared"), "{told}");
    }
}
