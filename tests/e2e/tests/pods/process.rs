//! Who a process is, what it may, and how it ends.

use support::cri::{Capability, Int64Value, LinuxContainerResources};

use super::Place;

/// How many containers are killed for their memory: an end that overtakes its reason does not always.
const TIMES: usize = 4;

pub(crate) fn a_process_is_who_and_may_what_it_was_told(place: &Place<'_>) {
    let mut container = place.shell("bound", "exec sleep 3600");
    let security = container
        .linux
        .mut_or_insert_default()
        .security_context
        .mut_or_insert_default();
    let id = |value| {
        Some(Int64Value {
            value,
            ..Default::default()
        })
        .into()
    };
    security.run_as_user = id(1000);
    security.run_as_group = id(1001);
    security.supplemental_groups = vec![2000, 2001];
    security.no_new_privs = true;
    security.readonly_rootfs = true;
    security.masked_paths = vec!["/proc/version".to_owned(), "/proc/acpi".to_owned()];
    security.readonly_paths = vec!["/proc/sys".to_owned()];
    security.capabilities = Some(Capability {
        drop_capabilities: vec!["ALL".to_owned()],
        ..Default::default()
    })
    .into();
    let bound = place.start(&container);
    let said = place.says(&bound, "id");
    assert!(
        said.starts_with("uid=1000(guest) gid=1001 groups="),
        "{said}"
    );
    assert!(said.contains("2000") && said.contains("2001"), "{said}");
    let status = place.says(&bound, "cat /proc/self/status");
    for line in [
        "NoNewPrivs:\t1",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
    ] {
        assert!(status.contains(line), "no {line} in {status}");
    }
    assert_eq!(place.says(&bound, "cat /proc/version"), "");
    assert!(
        place
            .says(&bound, "grep ' /proc/sys ' /proc/mounts")
            .contains("ro,")
    );
    let refused = place.kube.cri.exec(&bound, &["touch", "/file"]).unwrap();
    assert_ne!(refused.code, 0, "the root is read-only");
    place.remove(&bound);
}

/// The limit is the container's, the end is told with its reason each time, and the pod goes on.
pub(crate) fn memory_that_runs_out_is_told_as_such(place: &Place<'_>) {
    for _ in 0..TIMES {
        memory_runs_out(place);
    }
}

fn memory_runs_out(place: &Place<'_>) {
    let mut container = place.shell("greedy", "exec tail /dev/zero");
    container.linux.mut_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 24 << 20,
        ..Default::default()
    })
    .into();
    let greedy = place.start(&container);
    let status = place.kube.cri.ended(&greedy).unwrap();
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled"),
        "{status}"
    );
    place.remove(&greedy);
}
