//! The pod's network, as the distribution's CNI plugins leave it, inside of real VMs: addresses, the node,
//! another pod, rules on the node, and nothing left of it in the end.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use support::image::{BUSYBOX, Recipe};
use support::node::{self, Node, PodNetwork};
use support::pod::{Pod, Settings};
use support::run::{Finished, Service};
use support::stage::Stage;
use support::{host, need};

const SHORT: Duration = Duration::from_secs(30);
const V4: &str = "10.77.0.0/24";
const V6: &str = "fd77::/64";

/// What every part of the test works with.
struct Place<'a> {
    stage: &'a Stage,
    config: &'a Path,
    root: &'a Path,
}

#[test]
fn pods_on_a_bridge_reach_the_node_and_each_other_as_its_rules_allow() {
    let vm = [
        "containerd",
        "ctr",
        "qemu-system-x86_64",
        "virtiofsd",
        BUSYBOX,
    ];
    if !need(&[&vm[..], &node::TOOLS[..]].concat()) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let config = Settings::plain().write(&stage.state, "c.toml").unwrap();
    let root = stage.state.dir("rootfs").unwrap();
    Recipe::busybox("served").unwrap().unpack(&root).unwrap();
    let place = Place {
        stage: &stage,
        config: &config,
        root: &root,
    };
    let before = stage.containerd.leftovers();
    let node = Node::new(stage.state.path()).unwrap();
    let bridge = node.bridge(&[V4, V6]);
    let (one, two) = (node.pod(&bridge).unwrap(), node.pod(&bridge).unwrap());
    place.start("one", &one);
    place.start("two", &two);
    let web = serve_on(&node, &root, stage.state.path());

    the_guest_has_what_cni_gave_the_pod(&place, &one);
    each_vmm_is_in_a_namespace_of_its_own(&place, [&one, &two]);
    a_pod_reaches_the_node_and_another_pod(&place, &two);
    rules_on_the_node_hold(&place, &node, &one, &two);

    stage.containerd.remove("two");
    place.is_clean(&two);
    the_same_namespace_serves_again(&place, &two);
    several_interfaces_reach_their_networks(&place, &node);
    a_killed_shim_leaves_nothing_in_the_namespace(&place, &one);
    drop(web);
    stage.settled(&before).unwrap();
}

#[test]
fn the_hosts_network_is_refused_with_a_reason() {
    if !need(&["containerd", "ctr", "qemu-system-x86_64", BUSYBOX]) {
        return;
    }
    let stage = Stage::plain().unwrap();
    let config = Settings::plain().write(&stage.state, "c.toml").unwrap();
    let root = stage.empty();
    // Of a process that everybody may look at, and that is in no other.
    let own = format!("network:/proc/{}/ns/net", std::process::id());
    for flags in [vec!["--net-host"], vec!["--with-ns", own.as_str()]] {
        let pod = Pod::new("hosted", &config, &root, &["/bin/true"]).flag(&flags);
        let error = stage.refuse(&pod, "failed-precondition", SHORT).unwrap();
        assert!(error.contains("hostNetwork"), "{error}");
    }
}

impl Place<'_> {
    fn start(&self, id: &str, network: &PodNetwork) {
        let [flag, namespace] = network.flags();
        let pod = Pod::new(id, self.config, self.root, &["/bin/sleep", "3600"]).flag(&[
            "--detach",
            "--null-io",
            &flag,
            &namespace,
        ]);
        let run = self.stage.run(&pod).unwrap();
        assert_eq!(run.code, 0, "{}\n{}", run.report(), self.stage.log_tail());
    }

    fn exec(&self, id: &str, name: &str, script: &str) -> Finished {
        let words = [
            "task",
            "exec",
            "--exec-id",
            name,
            id,
            "/bin/busybox",
            "sh",
            "-c",
            script,
        ];
        self.stage.containerd.ctr_within(SHORT, &words).unwrap()
    }

    #[track_caller]
    fn says(&self, id: &str, name: &str, script: &str) -> String {
        let said = self.exec(id, name, script);
        assert_eq!(said.code, 0, "{}\n{}", said.report(), self.stage.log_tail());
        said.stdout
    }

    #[track_caller]
    /// Soon: containerd answers before it has cleaned up after a shim that died.
    fn is_clean(&self, network: &PodNetwork) {
        let until = Instant::now() + SHORT;
        loop {
            let traces = network.traces().unwrap();
            if traces.is_empty() {
                return;
            }
            let late = Instant::now() > until;
            assert!(!late, "{traces:?}\n{}", self.stage.log_tail());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A web server of the node that serves the root file system.
fn serve_on(node: &Node, root: &Path, state: &Path) -> Service {
    let mut httpd = node.command(BUSYBOX);
    httpd.args(["httpd", "-f", "-p", "8080", "-h"]).arg(root);
    let mut service = Service::start(&mut httpd, &state.join("httpd.log")).unwrap();
    let listens = || {
        node.run("ss -Hltn sport = :8080")
            .is_ok_and(|said| !said.is_empty())
    };
    service.wait_until(SHORT, listens).unwrap();
    service
}

fn the_guest_has_what_cni_gave_the_pod(place: &Place<'_>, network: &PodNetwork) {
    let shown = place.says("one", "a", "busybox ip address show dev eth0");
    for wanted in [
        format!("inet {}/24", network.address(false)),
        format!("inet6 {}/64", network.address(true)),
        "mtu 1400".to_owned(),
    ] {
        assert!(shown.contains(&wanted), "no {wanted} in {shown}");
    }
    let routes = place.says("one", "r", "busybox ip route; busybox ip -6 route");
    assert!(
        routes.contains("default via 10.77.0.1") && routes.contains("default via fd77::1"),
        "{routes}"
    );
}

/// Neither in the host's nor in the pod's: what it has of the network are open devices.
fn each_vmm_is_in_a_namespace_of_its_own(place: &Place<'_>, pods: [&PodNetwork; 2]) {
    let all = host::processes_of(place.stage.state.path());
    let vmms = all.iter().filter(|one| one.command.contains("qemu-system"));
    let theirs = vmms.map(|vmm| format!("/proc/{}/ns/net", vmm.pid));
    let others = pods.map(|pod| format!("/run/netns/{}", pod.name()));
    let namespace = |path: String| std::fs::metadata(path).unwrap().ino();
    let mut namespaces: Vec<_> = theirs.chain(others).map(namespace).collect();
    namespaces.push(namespace("/proc/self/ns/net".to_owned()));
    assert_eq!(namespaces.len(), 5);
    assert_eq!(BTreeSet::from_iter(namespaces).len(), 5);
}

fn a_pod_reaches_the_node_and_another_pod(place: &Place<'_>, two: &PodNetwork) {
    let (v4, v6) = (two.address(false), two.address(true));
    for (number, target) in ["10.77.0.1", "fd77::1", &v4, &v6].iter().enumerate() {
        let script = format!("busybox ping -c 2 -W 5 {target}");
        let said = place.says("one", &format!("p{number}"), &script);
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
    let fetch = "busybox wget -q -O - http://10.77.0.1:8080/marker";
    assert_eq!(place.says("one", "w1", fetch), "served\n");
    place.says("two", "h", "busybox httpd -p 80 -h /");
    let fetch = format!("busybox wget -q -O - 'http://[{v6}]/marker'");
    assert_eq!(place.says("one", "w2", &fetch), "served\n");
    // More than one segment, both ways of offloading.
    let fetch = format!(
        "busybox wget -q -O - http://{v4}/bin/busybox | busybox md5sum; busybox md5sum < /bin/busybox"
    );
    let sums = place.says("one", "w3", &fetch);
    let mut sums = sums.lines();
    assert_eq!(sums.next(), sums.next());
}

/// As a network policy is: by pod, on the node, out of the guest's reach.
fn rules_on_the_node_hold(place: &Place<'_>, node: &Node, one: &PodNetwork, two: &PodNetwork) {
    let (from, to) = (one.address(false), two.address(false));
    let fetch = format!("busybox timeout 3 busybox wget -q -O - http://{to}/marker");
    node.run("nft add table bridge pods").unwrap();
    node.run("nft add chain bridge pods forward { type filter hook forward priority 0 ; }")
        .unwrap();
    let rule = format!("nft add rule bridge pods forward ip saddr {from} tcp dport 80 drop");
    node.run(&rule).unwrap();
    let refused = place.exec("one", "n1", &fetch);
    assert_ne!(refused.code, 0, "{}", refused.report());
    // What the rule does not name still passes, and all of it when the rule is gone.
    place.says("one", "n2", &format!("busybox ping -c 1 -W 5 {to}"));
    node.run("nft delete table bridge pods").unwrap();
    let fetch = format!("busybox wget -q -O - http://{to}/marker");
    assert_eq!(place.says("one", "n3", &fetch), "served\n");
}

fn the_same_namespace_serves_again(place: &Place<'_>, network: &PodNetwork) {
    place.start("again", network);
    let said = place.says("again", "p", "busybox ping -c 1 -W 5 10.77.0.1");
    assert!(said.contains(" 0% packet loss"), "{said}");
    place.stage.containerd.remove("again");
    place.is_clean(network);
}

/// Besides the bridge's, one by the macvlan plugin, and a macvtap as other networks make them.
fn several_interfaces_reach_their_networks(place: &Place<'_>, node: &Node) {
    for line in [
        "ip link add up0 type veth peer name up1",
        "ip link set up0 up",
        "ip link set up1 up",
        "ip address add 10.78.0.1/24 dev up1",
        "ip address add 10.79.0.1/24 dev up1",
    ] {
        node.run(line).unwrap();
    }
    let pod = node.pod(&node.bridge(&[V4, V6])).unwrap();
    let macvlan = json!({
        "cniVersion": "0.4.0", "name": "lan", "type": "macvlan", "master": "up0", "mode": "bridge",
        "ipam": {"type": "static", "addresses": [{"address": "10.78.0.9/24"}]},
    });
    node.add(&pod, "net1", &macvlan).unwrap();
    node.run("ip link add tap0 link up0 type macvtap mode bridge")
        .unwrap();
    node.run(&format!("ip link set tap0 netns {} name net2", pod.name()))
        .unwrap();
    pod.run("ip address add 10.79.0.9/24 dev net2").unwrap();
    pod.run("ip link set net2 up").unwrap();

    place.start("three", &pod);
    for (number, target) in ["10.77.0.1", "10.78.0.1", "10.79.0.1"].iter().enumerate() {
        let script = format!("busybox ping -c 2 -W 5 {target}");
        let said = place.says("three", &format!("p{number}"), &script);
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
    let links = place.says("three", "l", "busybox ip link");
    for name in ["eth0", "net1", "net2"] {
        assert!(links.contains(&format!(" {name}: ")), "{links}");
    }
    place.stage.containerd.remove("three");
    place.is_clean(&pod);
}

fn a_killed_shim_leaves_nothing_in_the_namespace(place: &Place<'_>, network: &PodNetwork) {
    assert!(!network.traces().unwrap().is_empty());
    for process in host::processes_of(place.stage.state.path()) {
        let mut words = process.command.split(' ');
        let is_shim = words
            .next()
            .is_some_and(|program| program.contains("containerd-shim-cloister"));
        if is_shim {
            kill(Pid::from_raw(process.pid), Signal::SIGKILL).unwrap();
        }
    }
    place.stage.containerd.remove("one");
    place.is_clean(network);
}
