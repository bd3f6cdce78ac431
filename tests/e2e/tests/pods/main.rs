//! Pods as Kubernetes asks for them: the real containerd through its CRI socket, one VM for each pod.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod lives;
mod process;
mod refused;
mod shared;
mod stream;

use support::cri::{ContainerConfig, PodSandboxConfig};
use support::image::{Entry, Recipe};
use support::kube::{self, Kube};
use support::need;
use support::pod::Settings;

/// What every case works with: a pod that runs, and an image.
struct Place<'a> {
    kube: &'a Kube,
    pod: &'a str,
    config: &'a PodSandboxConfig,
    image: &'a str,
}

impl Place<'_> {
    /// A container of this name that runs a line of shell.
    fn shell(&self, name: &str, line: &str) -> ContainerConfig {
        kube::container(name, self.image, &["/bin/sh", "-c", line])
    }

    #[track_caller]
    fn start(&self, container: &ContainerConfig) -> String {
        self.kube
            .start_in(self.pod, self.config, container)
            .unwrap()
    }

    /// What a line of shell says in a container.
    #[track_caller]
    fn says(&self, container: &str, line: &str) -> String {
        let said = self
            .kube
            .cri
            .exec(container, &["/bin/sh", "-c", line])
            .unwrap();
        assert_eq!(said.code, 0, "{line}: {}{}", said.stdout, said.stderr);
        said.stdout
    }

    /// Removes a container, which may run.
    fn remove(&self, container: &str) {
        self.kube
            .cri
            .of_container("RemoveContainer", container)
            .unwrap();
    }
}

/// busybox with what the cases call besides.
fn recipe() -> Recipe {
    let mut recipe = Recipe::busybox("from containerd").unwrap();
    for applet in ["httpd", "wget", "setsid", "sed", "ip", "nc"] {
        recipe.layers[0].push(Entry::Link(format!("bin/{applet}"), "busybox".into()));
    }
    recipe
}

#[test]
fn a_pod_runs_through_the_container_runtime_interface() {
    if !need(&kube::TOOLS) {
        return;
    }
    let kube = Kube::start(&Settings::plain()).unwrap();
    let image = kube.import(&recipe(), "busybox").unwrap();
    let before = kube.containerd.leftovers();
    let mut config = kube.pod("one");
    let linux = config.linux.mut_or_insert_default();
    linux.sysctls.insert(
        "net.ipv4.ip_local_port_range".to_owned(),
        "40000 40100".to_owned(),
    );
    let pod = kube.run_pod(&config).unwrap();
    let place = Place {
        kube: &kube,
        pod: &pod,
        config: &config,
        image: &image,
    };

    lives::init_containers_run_one_after_the_other(&place);
    let main = lives::the_pods_settings_reach_its_containers(&place);
    lives::a_debugger_sees_the_processes_of_its_target(&place, &main);
    lives::what_a_container_uses_is_told(&place, &main);
    let sidecar = shared::containers_share_the_network_ipc_and_the_host_name(&place, &main);
    process::a_process_is_who_and_may_what_it_was_told(&place);
    process::memory_that_runs_out_is_told_as_such(&place);
    stream::logs_have_both_outputs(&place);
    stream::streams_of_exec_and_attach_carry_bytes_and_the_end(&place, &main);
    stream::ports_are_forwarded_to_the_pods_loopback(&place);
    let main = lives::a_container_starts_again_in_a_living_pod(&place, &main);
    refused::what_a_vm_has_not_is_refused_by_name(&place);
    assert_eq!(
        place.says(&sidecar, "cat /marker"),
        "from containerd\n",
        "the others are as they were"
    );
    place.remove(&main);
    kube.remove_pod(&pod).unwrap();
    kube.settled(&before).unwrap();

    shared::one_pid_namespace_for_all(&kube, &image);
    kube.settled(&before).unwrap();
}
