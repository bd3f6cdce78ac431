//! Which network a specification asks for, and errors as containerd gets them.

use super::late::{Known, News};
use super::*;

fn spec(namespaces: &str) -> Spec {
    serde_json::from_str(&format!(r#"{{"linux":{{"namespaces":[{namespaces}]}}}}"#)).unwrap()
}

#[test]
fn a_path_is_the_pods_network_and_none_is_no_network() {
    let with = spec(r#"{"type":"pid"},{"type":"network","path":"/run/netns/a"}"#);
    assert_eq!(wanted(&with).unwrap(), Some("/run/netns/a".into()));
    let new = spec(r#"{"type":"network"}"#);
    assert_eq!(wanted(&new).unwrap(), None);
}

#[test]
fn the_hosts_network_is_refused_with_the_fix() {
    for without in [spec(r#"{"type":"pid"}"#), Spec::default()] {
        let error = GuestError::from(wanted(&without).unwrap_err());
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
        assert!(
            error.to_string().starts_with("network: ") && error.message.contains("hostNetwork"),
            "{error}"
        );
    }
}

#[test]
fn an_error_says_what_failed_down_to_the_cause() {
    let error = NetworkError::Tap {
        interface: "eth0".to_owned(),
        advice: "make its tap device",
        source: io::Error::from_raw_os_error(nix::libc::EPERM),
    };
    let text = GuestError::from(error).to_string();
    assert_eq!(
        text,
        "network: interface eth0: make its tap device: Operation not permitted (os error 1) [internal]"
    );
}

/// A network namespace with a name, as CNI's callers make them; gone with the value.
struct Pod {
    name: String,
    directory: StateDir,
    _root: tempfile::TempDir,
}

impl Pod {
    /// One with what `ip` makes in it by each of these lines; none, with a message, where the machine has
    /// no namespaces to give.
    fn with(name: &str, lines: &[&str]) -> Option<Self> {
        let present = |tool: &str| std::process::Command::new(tool).arg("-V").output().is_ok();
        if !nix::unistd::geteuid().is_root() || !present("ip") || !present("tc") {
            assert!(
                std::env::var_os("CLOISTER_NO_SKIP").is_none_or(|v| v != "1"),
                "CLOISTER_NO_SKIP=1, but this test needs root, `ip` and `tc`"
            );
            eprintln!("SKIPPED: needs root, `ip` and `tc`; `.ci/setup` installs them");
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        let pod = Self {
            name: format!("clo-{name}-{}", std::process::id()),
            directory: StateDir::at(root.path()),
            _root: root,
        };
        run("ip", &format!("netns add {}", pod.name));
        for line in lines {
            pod.run("ip", line);
        }
        Some(pod)
    }

    fn run(&self, tool: &str, line: &str) -> String {
        run(tool, &format!("-n {} {line}", self.name))
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    fn attach(&self) -> Result<Attached, NetworkError> {
        attach(&self.path(), &self.directory)
    }

    /// Lets the taps go. A program that another test is starting has their descriptors too, until it runs.
    fn release(&self, attached: Attached) {
        drop(attached);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while self.run("ip", "link").contains("ctap") {
            let late = std::time::Instant::now() >= until;
            assert!(!late, "a tap goes with its descriptor");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        run("ip", &format!("netns delete {}", self.name));
    }
}

fn run(tool: &str, line: &str) -> String {
    let words = line.split_whitespace();
    let run = std::process::Command::new(tool)
        .args(words)
        .output()
        .unwrap();
    assert!(run.status.success(), "{tool} {line}: {run:?}");
    String::from_utf8(run.stdout).unwrap()
}

const VETH: &[&str] = &[
    "link add eth0 type veth peer name far",
    "link set eth0 mtu 1400 up",
    "address add 10.1.2.3/24 dev eth0",
    "route add default via 10.1.2.1",
    "neighbour add 10.1.2.1 dev eth0 lladdr 02:00:00:00:00:01 nud permanent",
];

#[test]
fn an_interface_that_comes_later_needs_a_place_and_is_found_once() {
    let Some(pod) = Pod::with("late", &[]) else {
        return;
    };
    let before = pod.run("tc", "qdisc show");
    let attached = pod.attach().unwrap();
    assert!(attached.nics.is_empty());
    let mut known = Known {
        told: attached.told,
        cards: attached.cards,
    };
    let look = |known: &Known, may_add| {
        let namespace = Namespace::open(&pod.path()).unwrap();
        late::look(namespace, &pod.directory, known, may_add)
    };
    assert!(look(&known, false).unwrap().is_none());
    for line in VETH {
        pod.run("ip", line);
    }
    let error = GuestError::from(look(&known, false).unwrap_err());
    assert!(error.message.contains("interface eth0 came"), "{error}");
    let attached_later = |news: News| Attached {
        nics: news.cards.into_iter().map(|card| card.nic).collect(),
        ..Attached::default()
    };
    // One that QEMU did not take is as new the next time, though it is on record for the end already.
    pod.release(attached_later(look(&known, true).unwrap().unwrap()));
    assert_eq!(Record::read(&pod.directory).unwrap().links.len(), 1);
    let news = look(&known, true).unwrap().unwrap();
    let names: Vec<_> = news.cards.iter().map(|card| &card.interface).collect();
    assert_eq!(names, ["eth0"]);
    assert_eq!(news.told.routes[0].gateway, "10.1.2.1");
    known.cards.extend(news.cards.iter().map(|card| card.index));
    known.told = news.told.clone();
    assert_eq!(Record::read(&pod.directory).unwrap().links.len(), 1);
    assert!(look(&known, false).unwrap().is_none());
    // An address alone needs no place.
    pod.run("ip", "address add 10.1.2.4/24 dev eth0");
    let more = look(&known, false).unwrap().unwrap();
    assert!(more.cards.is_empty());
    assert_eq!(more.told.interfaces[0].IPAddresses.len(), 2);
    pod.release(attached_later(news));
    undo(&pod.directory);
    pod.run("ip", "link delete eth0");
    assert_eq!(pod.run("tc", "qdisc show"), before);
}

#[test]
fn a_veth_is_tied_both_ways_told_and_undone() {
    let Some(pod) = Pod::with("tied", VETH) else {
        return;
    };
    let before = pod.run("tc", "qdisc show");
    let attached = pod.attach().unwrap();
    assert_eq!(attached.nics.len(), 1);
    let told = &attached.told;
    assert_eq!(told.interfaces[0].IPAddresses[0].address, "10.1.2.3");
    assert_eq!(told.routes[0].gateway, "10.1.2.1");
    assert_eq!(told.neighbours[0].lladdr, "02:00:00:00:00:01");

    let links = pod.run("ip", "-oneline link");
    let tap = links
        .split_whitespace()
        .find(|word| word.starts_with("ctap"))
        .unwrap()
        .trim_end_matches(':')
        .to_owned();
    for (from, to) in [("eth0", tap.as_str()), (tap.as_str(), "eth0")] {
        let filters = pod.run("tc", &format!("filter show dev {from} ingress"));
        assert!(
            filters.contains(&format!("Egress Redirect to device {to}")),
            "{filters}"
        );
    }
    let tap = pod.run("ip", &format!("link show {tap}"));
    assert!(tap.contains("mtu 1400") && tap.contains("UP"), "{tap}");

    pod.release(attached);
    undo(&pod.directory);
    undo(&pod.directory);
    assert_eq!(pod.run("tc", "qdisc show"), before);
}

#[test]
fn what_a_killed_vm_has_left_is_replaced_by_the_next() {
    let Some(pod) = Pod::with("again", VETH) else {
        return;
    };
    pod.release(pod.attach().unwrap());
    assert!(pod.run("tc", "qdisc show dev eth0").contains("ingress"));
    let _second = pod.attach().unwrap();
    let filters = pod.run("tc", "filter show dev eth0 ingress");
    assert_eq!(filters.matches("mirred").count(), 1, "{filters}");
}

#[test]
fn a_namespace_serves_one_vm() {
    let Some(pod) = Pod::with("busy", VETH) else {
        return;
    };
    let _first = pod.attach().unwrap();
    let error = pod.attach().unwrap_err().to_string();
    assert!(
        error.contains("eth0") && error.contains("another VM"),
        "{error}"
    );
}

#[test]
fn a_qdisc_of_somebody_else_is_named_and_left() {
    let Some(pod) = Pod::with("foreign", VETH) else {
        return;
    };
    pod.run("tc", "qdisc add dev eth0 ingress");
    pod.run(
        "tc",
        "filter add dev eth0 parent ffff: prio 7 protocol all u32 match u8 0 0 action mirred egress redirect dev far",
    );
    let error = pod.attach().unwrap_err().to_string();
    assert!(error.contains("tc qdisc del dev eth0 ingress"), "{error}");
    undo(&pod.directory);
    assert!(
        pod.run("tc", "filter show dev eth0 ingress")
            .contains("mirred")
    );
}

#[test]
fn several_interfaces_of_several_kinds_are_attached() {
    let lines = [
        VETH,
        &[
            "link add lower type veth peer name lower2",
            "link add net1 link lower type macvlan mode bridge",
            "link set net1 up",
            "link add net2 link lower type macvtap mode bridge",
            "link set net2 up",
            "address add 10.9.0.2/24 dev net2",
        ],
    ]
    .concat();
    let Some(pod) = Pod::with("kinds", &lines) else {
        return;
    };
    let attached = pod.attach().unwrap();
    let names: Vec<_> = attached
        .told
        .interfaces
        .iter()
        .map(|interface| interface.name.as_str())
        .collect();
    assert_eq!(
        (names, attached.nics.len()),
        (vec!["eth0", "net1", "net2"], 3)
    );
    // Nothing of it stays in the sandbox's directory but the record.
    let left: Vec<_> = std::fs::read_dir(pod.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["network.json"]);
    pod.release(attached);
    undo(&pod.directory);
    assert!(!pod.run("tc", "qdisc show").contains("ingress"));
}

#[test]
fn a_namespace_without_interfaces_is_no_network_and_one_that_went_is_no_error() {
    let Some(pod) = Pod::with("empty", &[]) else {
        return;
    };
    let attached = pod.attach().unwrap();
    assert!(attached.nics.is_empty() && attached.told == Told::default());
    let error = attach(Path::new("/run/netns/none-such"), &pod.directory).unwrap_err();
    assert!(
        error.to_string().contains("/run/netns/none-such"),
        "{error}"
    );

    let Some(gone) = Pod::with("gone", VETH) else {
        return;
    };
    drop(gone.attach().unwrap());
    let directory = gone.directory.clone();
    let root = gone._root.path().to_owned();
    std::fs::copy(
        root.join("network.json"),
        pod.directory.path().join("network.json"),
    )
    .unwrap();
    drop(gone);
    assert!(!directory.path().exists());
    undo(&pod.directory);
    assert!(!pod.directory.path().join("network.json").exists());
}
