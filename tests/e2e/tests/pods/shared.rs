//! What the containers of a pod have in common.

use support::cri::{NamespaceMode, NamespaceOption};
use support::kube::Kube;

use super::Place;

/// A sidecar beside a container that runs. Answers the sidecar.
pub(crate) fn containers_share_the_network_ipc_and_the_host_name(
    place: &Place<'_>,
    main: &str,
) -> String {
    let sidecar = place.start(&place.shell("sidecar", "exec httpd -f -p 127.0.0.1:8080 -h /"));
    assert_eq!(
        place.says(main, "wget -q -O - http://127.0.0.1:8080/marker"),
        "from containerd\n"
    );
    place.says(main, "echo shared > /dev/shm/note");
    assert_eq!(place.says(&sidecar, "cat /dev/shm/note"), "shared\n");
    let size = place.says(&sidecar, "df -k /dev/shm | tail -n 1");
    assert_eq!(size.split_whitespace().nth(1), Some("65536"), "{size}");
    for kind in ["ipc", "uts", "net"] {
        let line = format!("stat -L -c %i /proc/self/ns/{kind}");
        assert_eq!(
            place.says(main, &line),
            place.says(&sidecar, &line),
            "{kind}"
        );
    }
    // Each has processes of its own.
    let seen = place.says(main, "ps");
    assert!(!seen.contains("httpd"), "{seen}");
    sidecar
}

/// `shareProcessNamespace`: all see all, whoever comes and goes, and what a container leaves behind ends.
pub(crate) fn one_pid_namespace_for_all(kube: &Kube, image: &str) {
    let mut config = kube.pod("two");
    let option = NamespaceOption {
        pid: NamespaceMode::POD.into(),
        ..Default::default()
    };
    let linux = config.linux.mut_or_insert_default();
    linux
        .security_context
        .mut_or_insert_default()
        .namespace_options = Some(option.clone()).into();
    let pod = kube.run_pod(&config).unwrap();
    let place = Place {
        kube,
        pod: &pod,
        config: &config,
        image,
    };
    let start = |name: &str, line: &str| {
        let mut container = place.shell(name, line);
        container
            .linux
            .mut_or_insert_default()
            .security_context
            .mut_or_insert_default()
            .namespace_options = Some(option.clone()).into();
        place.start(&container)
    };
    let watcher = start("watcher", "exec sleep 3600");
    let main = start("main", "setsid sleep 1234 & sleep 2345 & exec sleep 3456");
    let seen = place.says(&watcher, "ps");
    for process in [
        "pause",
        "sleep 3600",
        "sleep 1234",
        "sleep 2345",
        "sleep 3456",
    ] {
        assert!(seen.contains(process), "no {process} in {seen}");
    }
    kube.cri.stop(&main, 5).unwrap();
    let status = kube.cri.status(&main).unwrap();
    assert_eq!(
        status.exit_code, 143,
        "SIGTERM ends what is no first process: {status}"
    );
    let seen = place.says(&watcher, "ps");
    for process in ["sleep 1234", "sleep 2345", "sleep 3456"] {
        assert!(!seen.contains(process), "{process} is left in {seen}");
    }
    place.remove(&main);
    kube.remove_pod(&pod).unwrap();
}
