//! What an operator sees of a node: the metrics of two pods of which one loses its VM, one trace from the shim
//! through the agent to the broker, the log, why a start failed; and nowhere what a pod keeps to itself.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::broker::Broker;
use support::collector::{Collector, Span};
use support::containerd::NAMESPACE;
use support::image::Recipe;
use support::pod::{Pod, Settings};
use support::registry::free_port;
use support::run::{Service, within};
use support::stage::{START, Stage, TOOLS};
use support::{host, need, product};

const SHORT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// What a pod is given and nobody may see: in its environment and its arguments.
const CANARIES: [&str; 2] = ["canary-of-the-environment-71", "canary-of-the-arguments-72"];
/// A line of containerd's own log in which a shim says something.
const OF_SHIM: &str = "sandbox=\"web\"";

struct Monitor {
    service: Service,
    address: String,
}

impl Monitor {
    fn start(stage: &Stage) -> Self {
        let address = format!("127.0.0.1:{}", free_port().unwrap());
        let mut command = Command::new(product::bin("cloister").unwrap());
        command
            .args(["monitor", "--listen", &address])
            .env("CLOISTER_STATE_ROOT", stage.containerd.shim_state());
        let log = stage.state.path().join("monitor.log");
        let mut service = Service::start(&mut command, &log).unwrap();
        let listens = || TcpStream::connect(&address).is_ok();
        service.wait_until(SHORT, listens).unwrap();
        Self { service, address }
    }

    fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(SHORT)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    /// The page once it has this line: what a shim notices may take it a moment.
    fn page_with(&self, line: &str) -> String {
        let since = Instant::now();
        loop {
            let (head, page) = self.get("/metrics");
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            if page.lines().any(|it| it == line) {
                return page;
            }
            assert!(
                since.elapsed() < SHORT,
                "no `{line}` in:\n{page}\n{}",
                self.service.log()
            );
            std::thread::sleep(POLL);
        }
    }
}

#[test]
fn an_operator_sees_what_happens_and_nothing_that_is_the_pods() {
    let promtool = promtool();
    let others = ["virtiofsd", "tar", promtool.to_str().unwrap()];
    if !need(&[&TOOLS[..], &others].concat()) {
        return;
    }
    let collector = Collector::start().unwrap();
    let mut stage = Stage::plain().unwrap();
    stage.broker = Some(Broker::traced(&stage.state, Some(collector.url())).unwrap());
    let monitor = Monitor::start(&stage);
    let image = stage
        .push(&Recipe::busybox("watched").unwrap(), "watched")
        .unwrap();
    let before = stage.containerd.leftovers();

    let settings = Settings {
        otlp: Some(collector.url().to_owned()),
        kernel_params: "cloister.log=info".to_owned(),
        ..stage.settings()
    };
    let config = settings.write(&stage.state, "traced.toml").unwrap();
    start_pod(&stage, &config, &image);
    start_plain(&stage);
    let mut seen = both_pods_have_metrics(&monitor);
    seen.push_str(&a_lost_vm_is_told(&stage, &monitor));
    seen.push_str(&a_failed_start_says_why(&stage, &monitor));
    the_log_names_the_sandbox_and_has_the_agents_lines(&stage);
    seen.push_str(&collect(&stage));

    for id in ["app", "web", "plain"] {
        stage.containerd.remove(id);
    }
    stage.settled(&before).unwrap();
    let spans = one_trace_from_shim_to_broker(&collector);
    seen.push_str(&format!("{spans:?}"));
    nothing_of_the_pods_is_seen(&stage, &seen);
}

/// A pod as the CRI plugin makes it: its sandbox, and a container that the guest pulls.
fn start_pod(stage: &Stage, config: &Path, image: &str) {
    let init_data = stage.init_data();
    let empty = stage.empty();
    let typed = |kind: &str| {
        let annotations = [
            format!("io.kubernetes.cri.container-type={kind}"),
            "io.kubernetes.cri.sandbox-id=web".to_owned(),
            "io.kubernetes.cri.sandbox-name=web-0".to_owned(),
            "io.kubernetes.cri.sandbox-namespace=shop".to_owned(),
            "io.kubernetes.cri.sandbox-uid=u-1".to_owned(),
        ];
        let flags = annotations.into_iter();
        flags
            .flat_map(|it| ["--annotation".to_owned(), it])
            .collect::<Vec<_>>()
    };
    let environment = format!("TOKEN={}", CANARIES[0]);
    let words = ["/bin/sh", "-c", "sleep 3600", CANARIES[1]];
    for (id, kind, words) in [
        ("web", "sandbox", &["/pause"][..]),
        ("app", "container", &words),
    ] {
        let mut pod = Pod::new(id, config, &empty, words).from_image(image);
        pod.flags = typed(kind);
        let flags = ["--detach", "--null-io", "--env", environment.as_str()];
        let pod = pod.with_init_data(&init_data).flag(&flags);
        let run = stage.run(&pod).unwrap();
        assert_eq!(run.code, 0, "{}\n{}", run.report(), stage.log_tail());
    }
}

fn start_plain(stage: &Stage) {
    let config = Settings::plain().write(&stage.state, "plain.toml").unwrap();
    let root = stage.state.dir("rootfs").unwrap();
    Recipe::busybox("plain").unwrap().unpack(&root).unwrap();
    let pod = Pod::new("plain", &config, &root, &["/bin/sleep", "3600"]);
    let run = stage.run(&pod.flag(&["--detach", "--null-io"])).unwrap();
    assert_eq!(run.code, 0, "{}\n{}", run.report(), stage.log_tail());
}

fn both_pods_have_metrics(monitor: &Monitor) -> String {
    let page = monitor.page_with("cloister_node_sandboxes{state=\"running\"} 2");
    let web = "sandbox_id=\"web\",namespace=\"cloister-test\",cri_uid=\"u-1\",cri_name=\"web-0\",\
        cri_namespace=\"shop\"";
    let plain = "sandbox_id=\"plain\",namespace=\"cloister-test\"";
    for (name, labels) in [
        (
            "kata_guest_meminfo",
            format!("{{item=\"mem_total\",{web}}} "),
        ),
        ("kata_agent_total_rss", format!("{{{plain}}} ")),
        (
            "kata_shim_process_resident_memory_bytes",
            format!("{{{web}}} "),
        ),
        ("kata_hypervisor_threads", format!("{{{plain}}} ")),
        ("kata_virtiofsd_threads", format!("{{{plain}}} ")),
        ("cloister_sandbox_containers", format!("{{{web}}} 2")),
        (
            "cloister_guest_metrics",
            format!("{{outcome=\"taken\",{web}}} 1"),
        ),
        (
            "cloister_start_phase_seconds_count",
            format!("{{phase=\"pull\",{web}}} 1"),
        ),
        (
            "kata_shim_rpc_durations_histogram_milliseconds_count",
            format!("{{action=\"create\",{web}}} 2"),
        ),
        (
            "cloister_node_start_phase_seconds_count",
            "{phase=\"vmm\"} 2".to_owned(),
        ),
    ] {
        let line = format!("{name}{labels}");
        assert!(
            page.lines().any(|it| it.starts_with(&line)),
            "no `{line}` in:\n{page}"
        );
    }
    assert!(!page.contains("kata_virtiofsd_threads{sandbox_id=\"web\""));
    let resident = "kata_shim_process_resident_memory_bytes";
    for line in page.lines().filter(|line| line.starts_with(resident)) {
        println!("{line}");
    }
    check(&page);
    let (_, list) = monitor.get("/sandboxes");
    assert_eq!(list, "plain\nweb\n");
    let (_, one) = monitor.get("/metrics?sandbox=web");
    assert!(
        one.contains("kata_guest_load") && !one.contains("\"plain\""),
        "{one}"
    );
    page
}

/// As Prometheus' own tool reads it; it also has an opinion on style, which is not asked.
fn check(page: &str) {
    let mut seen = std::collections::BTreeSet::new();
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for line in types {
        let name = line.split(' ').next().unwrap();
        assert!(seen.insert(name.to_owned()), "{name} is there twice");
    }
    let mut command = Command::new(promtool());
    let command = command.args(["check", "metrics"]);
    let checked = support::run::with_input(SHORT, command, page.as_bytes()).unwrap();
    assert!(
        !checked.stderr.contains("error while linting"),
        "{}",
        checked.report()
    );
}

/// Where `.ci/setup` keeps it.
fn promtool() -> PathBuf {
    product::top().join(".cache/promtool/promtool")
}

fn a_lost_vm_is_told(stage: &Stage, monitor: &Monitor) -> String {
    let record = stage
        .containerd
        .shim_state()
        .join(NAMESPACE)
        .join("plain/vmm.pid");
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    let pid = i32::try_from(record["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let page = monitor.page_with("cloister_node_sandboxes{state=\"stopped\"} 1");
    for line in [
        "cloister_node_sandboxes{state=\"running\"} 1",
        "cloister_sandbox_up{sandbox_id=\"plain\",namespace=\"cloister-test\"} 1",
        "cloister_guest_metrics{outcome=\"unreachable\",sandbox_id=\"plain\",namespace=\"cloister-test\"} 1",
    ] {
        assert!(page.lines().any(|it| it == line), "no `{line}` in:\n{page}");
    }
    assert!(!page.contains("kata_hypervisor_threads{sandbox_id=\"plain\""));
    page
}

fn a_failed_start_says_why(stage: &Stage, monitor: &Monitor) -> String {
    let settings = Settings {
        kernel_params: "rdinit=/nowhere".to_owned(),
        ..stage.settings()
    };
    let config = settings.write(&stage.state, "broken.toml").unwrap();
    let empty = stage.empty();
    let pod = Pod::new("broken", &config, &empty, &["/bin/true"]).from_image("localhost/none:1");
    let told = stage.refuse(&pod, "guest-panicked", START).unwrap();
    // The console's last lines, and of them the one that says it.
    for words in ["Kernel panic - not syncing", "the console's last lines"] {
        assert!(told.contains(words), "{told}");
    }
    let page = monitor.page_with("cloister_node_start_failures_total{code=\"guest-panicked\"} 1");
    format!("{told}{page}")
}

fn the_log_names_the_sandbox_and_has_the_agents_lines(stage: &Stage) {
    let log = stage.containerd.log();
    let mut lines = log.lines().filter(|line| line.contains(OF_SHIM));
    assert!(lines.clone().count() > 2, "{}", stage.log_tail());
    let pulled = lines.find(|line| line.contains("source=\"agent\"") && line.contains("pulled"));
    let pulled = pulled.unwrap_or_else(|| panic!("{}", stage.log_tail()));
    assert!(
        pulled.contains("time=") && pulled.contains("level=info"),
        "{pulled}"
    );
}

/// The archive for a bug report, unpacked.
fn collect(stage: &Stage) -> String {
    let archive = stage.state.path().join("report.tar.gz");
    let mut command = Command::new(product::bin("cloister").unwrap());
    command
        .arg("collect")
        .arg("--output")
        .arg(&archive)
        .env("CLOISTER_STATE_ROOT", stage.containerd.shim_state());
    within(SHORT, &mut command).unwrap().ok().unwrap();
    let mut tar = Command::new("tar");
    let unpacked = within(SHORT, tar.arg("-xzOf").arg(&archive)).unwrap();
    let text = unpacked.ok().unwrap().stdout;
    assert!(
        text.contains("\"web\""),
        "the archive knows of no sandbox:\n{text}"
    );
    text
}

fn one_trace_from_shim_to_broker(collector: &Collector) -> Vec<Span> {
    let since = Instant::now();
    // The broker sends every two seconds.
    let spans = loop {
        let spans = collector.spans();
        let of_broker = |span: &Span| span.service == "kbs" && span.name.contains("/attest");
        if spans.iter().any(of_broker) {
            break spans;
        }
        assert!(
            since.elapsed() < SHORT,
            "no span of the broker in {spans:#?}"
        );
        std::thread::sleep(POLL);
    };
    let create = "containerd.task.Task/Create";
    let find = |service: &str, name: &str, container: &str| {
        let found = spans.iter().find(|span| {
            let of = span
                .attributes
                .get("container.id")
                .map_or("", String::as_str);
            (span.service.as_str(), span.name.as_str(), of) == (service, name, container)
        });
        found.unwrap_or_else(|| panic!("no {name} of {container:?} by {service} in {spans:#?}"))
    };
    let (pod, app) = (
        find("cloister-shim", create, "web"),
        find("cloister-shim", create, "app"),
    );
    let (made, attest) = (
        find("cloister-shim", "create", "app"),
        find("cloister-agent", "attest", ""),
    );
    for (span, parent) in [
        (find("cloister-shim", "vmm", ""), pod),
        (find("cloister-agent", "kernel", ""), pod),
        (find("cloister-agent", "agent", ""), pod),
        (find("cloister-shim", "create", "web"), pod),
        (made, app),
        (find("cloister-agent", "pull", "app"), made),
        (attest, made),
        (
            find("cloister-shim", "start", "app"),
            find("cloister-shim", "containerd.task.Task/Start", "app"),
        ),
    ] {
        assert_eq!(span.parent, parent.id, "{} in {spans:#?}", span.name);
        assert!(
            span.start <= span.end && span.start >= parent.start,
            "{span:?} {parent:?}"
        );
    }
    let of_broker: Vec<_> = spans
        .iter()
        .filter(|span| span.parent == attest.id)
        .collect();
    assert!(
        of_broker.iter().any(|span| span.service == "kbs"),
        "{spans:#?}"
    );
    let foreign = spans
        .iter()
        .filter(|span| span.service != "kbs" && span.trace != pod.trace);
    assert_eq!(foreign.count(), 0, "{spans:#?}");
    assert!(
        of_broker.iter().all(|span| span.trace == pod.trace),
        "{spans:#?}"
    );
    spans
}

fn nothing_of_the_pods_is_seen(stage: &Stage, seen: &str) {
    for canary in CANARIES {
        assert!(!seen.contains(canary), "{canary} is told");
    }
    // containerd keeps specifications in its own store; what is searched here is what we write.
    let mut places = vec![stage.containerd.shim_state()];
    for log in ["containerd.log", "kbs.log", "monitor.log"] {
        places.push(stage.state.path().join(log));
    }
    let needles = CANARIES.map(str::as_bytes);
    let control = host::files_with(&places, &[b"the shim serves".as_slice()]).unwrap();
    assert!(!control.is_empty(), "the search finds nothing at all");
    assert_eq!(
        host::files_with(&places, &needles).unwrap(),
        Vec::<std::path::PathBuf>::new()
    );
}
