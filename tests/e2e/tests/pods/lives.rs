//! Containers that come and go in a pod that stays.

use support::cri::{ContainerState, NamespaceMode, NamespaceOption};

use super::Place;

/// Each runs to its end before the next is there; one that fails says so.
pub(crate) fn init_containers_run_one_after_the_other(place: &Place<'_>) {
    for (name, code) in [("first", 0), ("second", 3)] {
        let container = place.start(&place.shell(name, &format!("echo {name}; exit {code}")));
        let status = place.kube.cri.ended(&container).unwrap();
        assert_eq!(status.exit_code, code, "{status}");
        let wanted = if code == 0 { "Completed" } else { "Error" };
        assert_eq!(status.reason, wanted, "{status}");
        assert!(status.created_at <= status.started_at);
        assert!(status.started_at <= status.finished_at);
        place.remove(&container);
    }
}

/// Host name, name servers with searches and options, and sysctls. Answers a container that runs.
pub(crate) fn the_pods_settings_reach_its_containers(place: &Place<'_>) -> String {
    let main = place.start(&place.shell("main", "exec sleep 3600"));
    assert_eq!(place.says(&main, "hostname"), "one\n");
    let resolver = place.says(&main, "cat /etc/resolv.conf");
    for line in [
        "nameserver 10.96.0.10",
        "search default.svc.test svc.test",
        "options ndots:5",
    ] {
        assert!(resolver.contains(line), "no {line} in {resolver}");
    }
    let range = place.says(&main, "cat /proc/sys/net/ipv4/ip_local_port_range");
    assert_eq!(
        range.split_whitespace().collect::<Vec<_>>(),
        ["40000", "40100"]
    );
    let address = place
        .kube
        .cri
        .pod_status(place.pod)
        .unwrap()
        .network
        .ip
        .clone();
    let shown = place.says(&main, "ip -o -4 address show dev eth0");
    assert!(shown.contains(&format!("inet {address}/24")), "{shown}");
    main
}

/// `kubectl debug --target`: a container that is added later, in the PID namespace of another.
pub(crate) fn a_debugger_sees_the_processes_of_its_target(place: &Place<'_>, main: &str) {
    let mut debugger = place.shell("debugger", "exec sleep 1800");
    let security = debugger
        .linux
        .mut_or_insert_default()
        .security_context
        .mut_or_insert_default();
    security.namespace_options = Some(NamespaceOption {
        pid: NamespaceMode::TARGET.into(),
        target_id: main.to_owned(),
        ..Default::default()
    })
    .into();
    let debugger = place.start(&debugger);
    let seen = place.says(&debugger, "ps");
    assert!(
        seen.contains("sleep 3600") && seen.contains("sleep 1800"),
        "{seen}"
    );
    place.kube.cri.stop(&debugger, 1).unwrap();
    place.remove(&debugger);
    // Its end is not that of what it looked at.
    assert!(place.says(main, "ps").contains("sleep 3600"));
}

pub(crate) fn what_a_container_uses_is_told(place: &Place<'_>, main: &str) {
    place.says(
        main,
        "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo x > /written",
    );
    let stats = place.kube.cri.stats(main).unwrap();
    assert!(
        stats.cpu.usage_core_nano_seconds.value > 1_000_000,
        "{stats}"
    );
    assert!(stats.memory.usage_bytes.value > 4096, "{stats}");
    assert!(stats.memory.working_set_bytes.value > 4096, "{stats}");
    // The layer of the image's user is on the host, and counted there from time to time.
    let since = std::time::Instant::now();
    while place
        .kube
        .cri
        .stats(main)
        .unwrap()
        .writable_layer
        .inodes_used
        .value
        == 0
    {
        assert!(
            since.elapsed().as_secs() < 30,
            "the writable layer is not counted"
        );
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

/// Its end is told, its successor has the same name, and the pod is the same.
pub(crate) fn a_container_starts_again_in_a_living_pod(place: &Place<'_>, main: &str) -> String {
    place.kube.cri.stop(main, 5).unwrap();
    let status = place.kube.cri.status(main).unwrap();
    assert_eq!(status.state, ContainerState::CONTAINER_EXITED.into());
    // Nothing of it handles SIGTERM as the first process of its namespace.
    assert_eq!(status.exit_code, 137, "{status}");
    place.remove(main);
    let mut again = place.shell("main", "exec sleep 3600");
    again.metadata.mut_or_insert_default().attempt = 1;
    let main = place.start(&again);
    assert_eq!(place.says(&main, "hostname"), "one\n");
    main
}
