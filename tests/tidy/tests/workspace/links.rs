//! Who may depend on whom. A trust line is only as good as the link line that keeps it.

use std::path::Path;

use tidy::graph::Graph;
use tidy::{source, tree};

/// `(crate, what it never links, because)`; reaching it through another of our crates counts.
const NEVER: &[(&str, &[&str], &str)] = &[
    (
        "shim",
        &[
            "attestation-agent",
            "kbs",
            "kbs-protocol",
            "verifier",
            "agent",
            "policies",
            "cloister",
        ],
        "the host's half neither judges evidence nor knows keys",
    ),
    (
        "cloister",
        &["attestation-agent", "kbs", "verifier", "agent"],
        "the command line prepares and asks, and decides nothing",
    ),
    (
        "snapshotter",
        &[
            "attestation-agent",
            "kbs",
            "kbs-protocol",
            "verifier",
            "agent",
            "policies",
            "cloister",
        ],
        "it leaves images to guests, and neither judges evidence nor knows keys",
    ),
    (
        "hypervisor",
        &[
            "oci-spec",
            "containerd-shim",
            "containerd-shim-protos",
            "agent-api",
            "image-rs",
        ],
        "a VmSpec says nothing of containers",
    ),
    (
        "agent-api",
        OURS,
        "the contract stands on nothing of ours, so that both ends can take it",
    ),
    (
        "netlink",
        OURS,
        "both halves read and write a network with it, and it decides for neither",
    ),
    (
        "footprint",
        OURS,
        "it looks after the memory of whichever program asks it, and after nothing else",
    ),
    ("evidence", OURS, "wire formats are the bottom of the house"),
    ("evidence", IO, "wire formats do no I/O"),
    ("measure", IO, "a measurement is a pure function"),
    (
        "kbs-protocol",
        IO,
        "messages are used by server and client, which bring their own I/O",
    ),
    (
        "kbs-protocol",
        &["kbs", "verifier", "attestation-agent", "agent", "shim"],
        "bottom",
    ),
    ("verifier", IO, "a trust decision reaches for no network"),
    (
        "verifier",
        &["kbs", "attestation-agent", "agent", "shim", "image-rs"],
        "bottom",
    ),
    (
        "policies",
        &["agent", "shim", "kbs", "attestation-agent", "image-rs"],
        "bottom",
    ),
    (
        "agent",
        &["kbs", "verifier", "shim", "hypervisor"],
        "the server is not linked by guests",
    ),
    (
        "attestation-agent",
        &["kbs", "verifier", "shim", "agent"],
        "as the agent",
    ),
    ("image-rs", TEES, "pulling an image knows nothing of TEEs"),
    ("transport", TEES, "a connection knows nothing of TEEs"),
    ("ocicrypt", TEES, "layer encryption knows nothing of TEEs"),
    (
        "ocicrypt",
        &["image-rs", "transport"],
        "layer encryption knows nothing of registries",
    ),
    (
        "kbs",
        &["agent", "attestation-agent", "shim", "image-rs"],
        "the broker runs alone",
    ),
];

/// The same of what a crate's own manifest names, where another of our crates brings it along.
const NEVER_ITSELF: &[(&str, &[&str], &str)] = &[(
    "snapshotter",
    &["evidence", "image-rs", "ocicrypt"],
    "it takes of the shim only how a volume is named, and touches neither evidence, images nor keys",
)];

const OURS: &[&str] = &[
    "agent",
    "agent-api",
    "attestation-agent",
    "cloister",
    "evidence",
    "footprint",
    "guest-image",
    "hypervisor",
    "image-rs",
    "kbs",
    "kbs-protocol",
    "measure",
    "netlink",
    "ocicrypt",
    "policies",
    "shim",
    "snapshotter",
    "transport",
    "verifier",
];
const IO: &[&str] = &[
    "tokio",
    "hyper",
    "axum",
    "rustix",
    "nix",
    "transport",
    "tokio-rustls",
    "ttrpc",
];
const TEES: &[&str] = &[
    "attestation-agent",
    "evidence",
    "kbs",
    "kbs-protocol",
    "measure",
    "verifier",
];
const TESTS: &[&str] = &[
    "bench",
    "conformance",
    "e2e",
    "fuzz",
    "hostile",
    "support",
    "tidy",
];

#[test]
fn no_crate_links_what_its_role_forbids() {
    let graph = Graph::load().unwrap();
    let mut broken = Vec::new();
    for (name, never, because) in NEVER {
        assert!(
            graph.crates().any(|c| c == *name),
            "the rules name `{name}`, which is gone"
        );
        let reach = graph.reach(name);
        for found in never.iter().filter(|n| *n != name && reach.contains(*n)) {
            broken.push(format!("{name} links {found}: {because}"));
        }
    }
    for (name, never, because) in NEVER_ITSELF {
        let named = graph.direct(name);
        for found in never.iter().filter(|n| named.contains(*n)) {
            broken.push(format!("{name} names {found} itself: {because}"));
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn nothing_of_the_tests_ships() {
    let graph = Graph::load().unwrap();
    for name in graph.crates().filter(|c| !TESTS.contains(c)) {
        let reach = graph.reach(name);
        let leaked: Vec<_> = TESTS.iter().filter(|t| reach.contains(*t)).collect();
        assert!(leaked.is_empty(), "{name} links test crates: {leaked:?}");
    }
}

/// Crates whose functions are a function of their arguments.
const PURE: &[&str] = &[
    "attestation-agent/evidence/src",
    "attestation-agent/measure/src",
    "kbs/kbs-protocol/src",
    "kbs/verifier/src",
];
const IMPURE: &[&str] = &[
    "tokio",
    "std::net",
    "std::fs",
    "std::env",
    "std::process",
    "std::thread",
    "SystemTime::now",
    "Instant::now",
    "OffsetDateTime::now",
];

#[test]
fn pure_crates_touch_no_file_no_net_and_no_clock() {
    let mut broken = Vec::new();
    for (file, text) in tree::rust_files().unwrap() {
        if !PURE.iter().any(|dir| file.starts_with(dir)) {
            continue;
        }
        let code = source::masked(source::body(&text));
        for (number, line) in code.lines().enumerate() {
            for word in IMPURE.iter().filter(|word| line.contains(*word)) {
                broken.push(format!("{}:{}: {word}", file.display(), number + 1));
            }
        }
    }
    assert!(
        broken.is_empty(),
        "pass it in instead:\n{}",
        broken.join("\n")
    );
}

#[test]
fn no_dependency_comes_from_git_and_versions_live_in_the_root() {
    let lock = tree::read(Path::new("Cargo.lock")).unwrap();
    assert!(
        !lock.contains("source = \"git+"),
        "a git dependency in Cargo.lock"
    );
    for file in tree::files().unwrap() {
        let is_member = file.file_name().is_some_and(|n| n == "Cargo.toml")
            && file.components().count() > 1
            && !file.starts_with("tests/fuzz/libfuzzer");
        if !is_member {
            continue;
        }
        let text = tree::read(&file).unwrap();
        let mut in_dependencies = false;
        for line in text.lines() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
            } else if in_dependencies && line.contains('=') && !line.starts_with('#') {
                assert!(
                    line.contains("workspace = true") || line.starts_with(' '),
                    "{}: `{line}` has its version here and not in the root",
                    file.display()
                );
            }
        }
        assert!(
            text.contains("[lints]\nworkspace = true"),
            "{} does not inherit the workspace's lints",
            file.display()
        );
    }
}
