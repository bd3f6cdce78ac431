//! A node's network without the machine's: a network namespace in the node's place, in which the
//! distribution's CNI plugins run, and the namespaces of its pods.
//!
//! What a test adds, changes and forbids is in these namespaces alone, so that tests disturb neither each
//! other nor the machine that they run on. All of it is gone with the value.

use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::run::{with_input, within};

/// Where Debian's `containernetworking-plugins` has its programs.
const PLUGINS: &str = "/usr/lib/cni";
/// What a node needs of the machine besides, for [`crate::need`].
pub const TOOLS: [&str; 6] = [
    "ip",
    "tc",
    "nft",
    "/usr/lib/cni/bridge",
    "/usr/lib/cni/macvlan",
    "/usr/lib/cni/host-local",
];
const LIMIT: Duration = Duration::from_secs(20);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The node.
#[derive(Debug)]
pub struct Node {
    namespace: Namespace,
    leases: PathBuf,
}

/// A pod's namespace, and what the plugin said of it.
#[derive(Debug)]
pub struct PodNetwork {
    namespace: Namespace,
    /// The result of the plugin's ADD.
    pub result: Value,
}

/// A named namespace, removed when dropped.
#[derive(Debug)]
struct Namespace(String);

impl Node {
    /// A node with nothing but a loopback; the plugins keep their leases below `state`.
    ///
    /// # Errors
    /// When the machine gives no namespace.
    pub fn new(state: &Path) -> Result<Self> {
        let namespace = Namespace::add()?;
        namespace.run("ip link set lo up")?;
        Ok(Self {
            namespace,
            leases: state.join("leases"),
        })
    }

    /// The node's namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.namespace.0)
    }

    /// Connects from the node's namespace.
    ///
    /// # Errors
    /// When the namespace or the address cannot be reached.
    pub fn connect(&self, address: &str) -> Result<TcpStream> {
        let namespace = File::open(self.path())?;
        let address = address.to_owned();
        // A thread of its own, which is nowhere else and ends with it.
        let connected = std::thread::spawn(move || -> Result<TcpStream> {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            TcpStream::connect(&address).with_context(|| format!("connect to {address}"))
        });
        match connected.join() {
            Ok(stream) => stream,
            Err(_) => bail!("the thread in the node's namespace ended early"),
        }
    }

    /// Puts the calling thread into the node's namespace, and with it what it starts from then on.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn enter(&self) -> Result<()> {
        Ok(setns(&File::open(self.path())?, CloneFlags::CLONE_NEWNET)?)
    }

    /// A command that runs in the node's namespace.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.namespace.command(program)
    }

    /// Runs a line in the node's namespace; it must succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn run(&self, line: &str) -> Result<String> {
        self.namespace.run(line)
    }

    /// The configuration of a bridge with addresses out of `subnets`, of which the node has the first.
    #[must_use]
    pub fn bridge(&self, subnets: &[&str]) -> Value {
        let ranges: Vec<_> = subnets.iter().map(|one| json!([{"subnet": one}])).collect();
        let routes: Vec<_> = subnets
            .iter()
            .map(|one| json!({"dst": if one.contains(':') { "::/0" } else { "0.0.0.0/0" }}))
            .collect();
        json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "mtu": 1400,
            "ipam": {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": self.leases},
        })
    }

    /// A pod whose first interface `eth0` is as `config` says.
    ///
    /// # Errors
    /// When the plugin refuses.
    pub fn pod(&self, config: &Value) -> Result<PodNetwork> {
        let namespace = Namespace::add()?;
        let mut pod = PodNetwork {
            namespace,
            result: Value::Null,
        };
        pod.result = self.add(&pod, "eth0", config)?;
        Ok(pod)
    }

    /// Gives a pod one more interface.
    ///
    /// # Errors
    /// When the plugin refuses.
    pub fn add(&self, pod: &PodNetwork, interface: &str, config: &Value) -> Result<Value> {
        let kind = config["type"]
            .as_str()
            .context("a configuration without type")?;
        let mut plugin = self.command(&format!("{PLUGINS}/{kind}"));
        plugin
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", &pod.namespace.0)
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", interface)
            .env("CNI_PATH", PLUGINS);
        let said = with_input(LIMIT, &mut plugin, config.to_string().as_bytes())?;
        ensure!(said.code == 0, "{}", said.report());
        Ok(serde_json::from_str(&said.stdout)?)
    }
}

impl PodNetwork {
    /// The namespace, as CNI and runtimes are told it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.namespace.0)
    }

    /// Runs a line in the pod's namespace; it must succeed.
    ///
    /// # Errors
    /// When it does not.
    pub fn run(&self, line: &str) -> Result<String> {
        self.namespace.run(line)
    }

    /// The name of the namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.namespace.0
    }

    /// The flags by which `ctr run` puts a container into it.
    #[must_use]
    pub fn flags(&self) -> [String; 2] {
        let path = self.path();
        [
            "--with-ns".to_owned(),
            format!("network:{}", path.display()),
        ]
    }

    /// The pod's first address of a family.
    ///
    /// # Panics
    /// When the plugin gave none, which a test notices.
    #[must_use]
    pub fn address(&self, v6: bool) -> String {
        let all = self.result["ips"].as_array().map_or(&[][..], Vec::as_slice);
        let texts = all.iter().filter_map(|ip| ip["address"].as_str());
        texts
            .filter_map(|text| text.split_once('/'))
            .map(|(ip, _)| ip.to_owned())
            .find(|ip| ip.contains(':') == v6)
            .unwrap_or_else(|| panic!("no such address in {}", self.result))
    }

    /// What of a VM is in the namespace: qdiscs for incoming frames, and taps.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn traces(&self) -> Result<Vec<String>> {
        let qdiscs = self.run("tc qdisc show")?;
        let links = self.run("ip -oneline link")?;
        let traces = qdiscs.lines().filter(|line| line.contains("ingress"));
        let taps = links.lines().filter(|line| line.contains("ctap"));
        Ok(traces.chain(taps).map(str::to_owned).collect())
    }
}

impl Namespace {
    fn add() -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("clo-{}-{number}", std::process::id());
        within(LIMIT, Command::new("ip").args(["netns", "add", &name]))?.ok()?;
        Ok(Self(name))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty line")?;
        let mut command = self.command(program);
        Ok(within(LIMIT, command.args(words))?.ok()?.stdout)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = within(LIMIT, Command::new("ip").args(["netns", "delete", &self.0]));
    }
}
