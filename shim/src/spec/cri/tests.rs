//! What a pod asks for, as the container runtime interface writes it.

use super::*;

/// A field of bytes; those of a test are short.
fn bytes(number: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap();
    assert!(length < 128, "a length of one byte");
    [&[number << 3 | 2, length], value].concat()
}

fn number(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

fn pair(number: u8, key: &str, value: &str) -> Vec<u8> {
    let entry = [bytes(1, key.as_bytes()), bytes(2, value.as_bytes())].concat();
    bytes(number, &entry)
}

fn place<'a>(annotations: &'a std::collections::HashMap<String, String>) -> Place<'a> {
    Place {
        id: "pod1",
        namespace: "k8s.io",
        netns: "/run/netns/a",
        annotations,
    }
}

fn spec(message: &[u8]) -> Spec {
    let annotations = std::collections::HashMap::new();
    let config = PodConfig::read(NAME, message).unwrap();
    config.spec(place(&annotations))
}

fn linux(fields: &[Vec<u8>]) -> Vec<u8> {
    bytes(8, &fields.concat())
}

/// `linux.securityContext.namespaceOptions`.
fn options(fields: &[Vec<u8>]) -> Vec<u8> {
    linux(&[bytes(2, &bytes(1, &fields.concat()))])
}

fn kinds(spec: &Spec) -> Vec<(&str, &str)> {
    let namespaces = spec.linux.iter().flat_map(|linux| &linux.namespaces);
    namespaces
        .map(|one| (one.kind.as_str(), one.path.as_str()))
        .collect()
}

#[test]
fn a_pod_is_what_its_message_says() {
    let resources = [number(1, 100), number(2, 50), number(4, 77)].concat();
    let message = [
        bytes(
            1,
            &[bytes(1, b"web"), bytes(2, b"u1"), bytes(3, b"ns")].concat(),
        ),
        bytes(2, b"host"),
        bytes(3, b"/log"),
        bytes(
            4,
            &[
                bytes(1, b"10.0.0.1"),
                bytes(1, b"10.0.0.2"),
                bytes(2, b"a.b"),
                bytes(2, b"c"),
                bytes(3, b"ndots:5"),
            ]
            .concat(),
        ),
        pair(7, "mine", "1"),
        pair(7, "io.kubernetes.cri.sandbox-id", "another"),
        linux(&[
            bytes(1, b"/pods/u1"),
            pair(3, "net.a", "2"),
            bytes(5, &resources),
        ]),
    ]
    .concat();
    let config = PodConfig::read(NAME, &message).unwrap();
    assert_eq!(
        config.dns,
        [
            "search a.b c",
            "nameserver 10.0.0.1",
            "nameserver 10.0.0.2",
            "options ndots:5"
        ]
    );
    assert!(config.shares_processes(), "what is not said is POD");
    let spec = spec(&message);
    assert_eq!(spec.hostname, "host");
    let annotation = |key: &str| spec.annotations.get(key).map(String::as_str);
    assert_eq!(annotation("mine"), Some("1"));
    assert_eq!(annotation("io.kubernetes.cri.sandbox-id"), Some("pod1"));
    assert_eq!(
        annotation("io.kubernetes.cri.container-type"),
        Some("sandbox")
    );
    assert_eq!(annotation("io.kubernetes.cri.sandbox-name"), Some("web"));
    assert_eq!(annotation(CPU_QUOTA), Some("50"));
    assert_eq!(annotation(MEMORY), Some("77"));
    let linux = spec.linux.as_ref().unwrap();
    assert_eq!(linux.cgroups_path, "/pods/u1/pod1");
    assert_eq!(linux.sysctl["net.a"], "2");
    assert!(kinds(&spec).contains(&("network", "/run/netns/a")));
}

#[test]
fn a_cgroup_is_named_in_the_form_of_its_parent() {
    let of = |parent: &[u8]| {
        spec(&linux(&[bytes(1, parent)]))
            .linux
            .unwrap()
            .cgroups_path
    };
    assert_eq!(of(b"/kubepods/pod1"), "/kubepods/pod1/pod1");
    assert_eq!(
        of(b"/kubepods.slice/p.slice"),
        "p.slice:cri-containerd:pod1"
    );
    assert_eq!(of(b""), "/k8s.io/pod1");
}

#[test]
fn a_namespace_of_the_host_is_not_the_pods() {
    let host = u8::try_from(NODE).unwrap();
    let spec = spec(&options(&[
        number(1, host),
        number(2, host),
        number(3, host),
    ]));
    let found: Vec<_> = kinds(&spec).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(found, ["uts", "mount"]);
    let own = options(&[number(2, 1)]);
    assert!(!PodConfig::read(NAME, &own).unwrap().shares_processes());
}

#[test]
fn users_of_the_pod_are_mapped_unless_they_are_the_hosts() {
    let mapping = [number(1, 9), number(2, 0), number(3, 1)].concat();
    let users = |mode| {
        let all = [number(1, mode), bytes(2, &mapping), bytes(3, &mapping)].concat();
        spec(&options(&[bytes(5, &all)])).linux.unwrap()
    };
    let mapped = users(0);
    assert_eq!(
        (mapped.uid_mappings[0].host_id, mapped.gid_mappings.len()),
        (9, 1)
    );
    assert!(users(2).uid_mappings.is_empty());
}

#[test]
fn another_message_and_a_torn_one_are_refused() {
    let refused = |name: &str, message: &[u8]| PodConfig::read(name, message).unwrap_err();
    let error = refused("runtime.v1.ContainerConfig", b"").to_string();
    assert!(
        error.contains("ContainerConfig") && error.contains(NAME),
        "{error}"
    );
    assert!(PodConfig::read(&format!("type.googleapis.com/{NAME}"), b"").is_ok());
    for torn in [
        b"\x12\xff".as_slice(),
        b"\x12\x01\xff",
        b"\x0f",
        b"\x10\x01",
        &[0x12; 2],
    ] {
        refused(NAME, torn);
    }
}
