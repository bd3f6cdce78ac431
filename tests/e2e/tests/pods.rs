//! Pods as Kubernetes asks for them: the real containerd through its CRI socket, one VM for each pod.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use support::image::Recipe;
use support::kube::{self, Kube, container};
use support::need;
use support::pod::Settings;

#[test]
fn a_pod_runs_through_the_container_runtime_interface() {
    if !need(&kube::TOOLS) {
        return;
    }
    let kube = Kube::start(&Settings::plain()).unwrap();
    let image = kube
        .import(&Recipe::busybox("from containerd").unwrap(), "busybox")
        .unwrap();
    let before = kube.containerd.leftovers();
    let config = kube.pod("one");
    let pod = kube.run_pod(&config).unwrap();
    let main = kube
        .start_in(
            &pod,
            &config,
            &container("main", &image, &["/bin/sleep", "3600"]),
        )
        .unwrap();
    assert_eq!(
        kube.cri.exec(&main, &["cat", "/marker"]).unwrap().ok(),
        "from containerd\n"
    );
    kube.remove_pod(&pod).unwrap();
    kube.settled(&before).unwrap();
}
