//! A policy that takes the first one's place, in a real VM: it governs the next request, and the broker is told of it
//! before it releases anything to the guest again.
//!
//! containerd's shim replaces no policy. So this is a host of its own, with the shim's parts: its relay, and its client
//! of the agent.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::time::Duration;

use agent_api::agent::{CopyFileRequest, SetPolicyRequest, WriteStreamRequest};
use agent_api::agent_ttrpc::AgentServiceClient;
use agent_api::{ErrorCode, GuestError, StreamKind, oci, ports};
use hypervisor::{Incoming, Vm, VmSpec};
use sha2::{Digest, Sha384};
use shim::config::{Config, Tee};
use shim::guest::{Guest, NewContainer, ProcessId};
use shim::relay::{HostPort, Notice};
use shim::rootfs::guest_pull_storage;
use shim::state_dir::StateDir;
use shim::{init_data, kernel_line};
use support::image::Recipe;
use support::init_data::{ALLOW_ALL, ANNOTATION};
use support::stage::{START, Stage, TOOLS};
use support::{need, product};
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

const POD: &str = "policy";
const CONTAINER: &str = "app";
const SECRET: &str = "for the guest that the later policy governs";
/// Notices that wait for whoever looks at them.
const NOTICES: usize = 64;
const CALL: Duration = Duration::from_secs(60);

/// Releases to a guest that recorded this policy before it attested, and to no other.
const RECORDED: &str = r#"package policy
default allow := false
evidence := input.submods.cpu0["ear.veraison.annotated-evidence"]
policies contains event.details.data.content if {
	some event in evidence.sample.uefi_event_logs
	event.digest_matches_event
	event.details.data.domain == "cloister"
	event.details.data.operation == "Policy"
}
reasons contains {
	"claim": "the policies that were recorded",
	"expected": "DIGEST",
	"found": sprintf("%v", [policies]),
	"fix": "set it",
}
allow if "DIGEST" in policies
"#;

/// What the second policy refuses, and what the last one does beside that.
const LATER: [&str; 1] = ["GetMetricsRequest"];
const LAST: [&str; 6] = [
    "SetPolicyRequest",
    "ExecProcessRequest",
    "SignalProcessRequest",
    "ReadStreamRequest",
    "WriteStreamRequest",
    "CloseStdinRequest",
];
/// More than a pipe holds.
const OUTPUT: usize = 1 << 20;

/// All but this.
fn without(rules: &[&str]) -> String {
    let mut policy = ALLOW_ALL.to_owned();
    for rule in rules {
        let allowed = format!("default {rule} := true");
        assert!(policy.contains(&allowed), "{rule}");
        policy = policy.replace(&allowed, &format!("default {rule} := false"));
    }
    policy
}

/// A guest that answers, with all that serves it.
struct Subject {
    vm: Vm,
    guest: Guest,
    calls: AgentServiceClient,
    _gone: watch::Sender<Option<GuestError>>,
}

impl Subject {
    async fn boot(stage: &Stage) -> Self {
        let text = stage.init_data().annotation().unwrap();
        let state = StateDir::under(stage.state.path(), "vm", POD).unwrap();
        std::fs::create_dir_all(state.path()).unwrap();
        let annotations = BTreeMap::from([(ANNOTATION.to_owned(), text)]);
        let prepared = init_data::prepare(&annotations, None, &state).unwrap();
        let prepared = prepared.unwrap();
        let config = Config {
            tee: Tee::Sample,
            ..Config::default()
        };
        let kernel = product::guest("vmlinux").unwrap();
        let spec = VmSpec {
            initrd: Some(product::guest("initramfs.cpio").unwrap()),
            kernel_params: kernel_line::words(&config, Some(&prepared.digest)),
            disks: vec![prepared.disk],
            memory_mib: 512,
            ..VmSpec::new(POD, &kernel, state.path())
        };
        let mut vm = Vm::boot(spec).await.unwrap();
        let (sender, notices) = mpsc::channel(NOTICES);
        let allow = [stage.registry.address(), stage.broker().unwrap().address()];
        let allow = allow.map(|address| address.parse().unwrap());
        tokio::spawn(serve(vm.incoming().unwrap(), HostPort::new(&allow, sender)));
        let ready = timeout(START, ready(notices)).await;
        ready.unwrap_or_else(|_| panic!("the guest is not ready: {}", vm.console_tail()));
        let client = Client::new(Socket::new(vm.connect(ports::AGENT).await.unwrap()));
        let (gone, watched) = watch::channel(None);
        Self {
            guest: Guest::new(client.clone(), watched).with_ports(vm.connector()),
            calls: AgentServiceClient::new(client),
            vm,
            _gone: gone,
        }
    }

    async fn set_policy(&self, policy: &str) -> Result<(), GuestError> {
        let request = SetPolicyRequest {
            policy: policy.to_owned(),
            ..Default::default()
        };
        let set = self.calls.set_policy(Context::default(), &request);
        let set = timeout(CALL, set).await.unwrap();
        set.map(drop).map_err(|error| GuestError::from(&error))
    }

    async fn run(&self, image: &str) {
        let new = NewContainer {
            id: CONTAINER.to_owned(),
            storages: vec![guest_pull_storage(image, &BTreeMap::new(), CONTAINER)],
            devices: Vec::new(),
            spec: oci::Spec {
                Process: Some(process("exec sleep 3600")).into(),
                Root: Some(oci::Root {
                    Path: format!("/run/kata-containers/{CONTAINER}/rootfs"),
                    ..Default::default()
                })
                .into(),
                Mounts: vec![mount("proc", "/proc"), mount("tmpfs", "/dev")],
                ..Default::default()
            },
            sandbox_pidns: false,
            trace: None,
        };
        self.guest.create_container(new).await.unwrap();
        self.guest.start_container(CONTAINER).await.unwrap();
    }

    /// Whether a program of the container gets the secret.
    async fn has_the_secret(&self, exec: &str) -> bool {
        let id = ProcessId {
            container: CONTAINER.to_owned(),
            exec: exec.to_owned(),
        };
        let url = "http://127.0.0.1:8006/cdh/resource/default/secret/one";
        let line = format!("test \"$(busybox wget -q -O - {url})\" = \"{SECRET}\"");
        self.guest.exec_process(&id, process(&line)).await.unwrap();
        let ended = timeout(CALL, self.guest.wait_process(&id)).await;
        ended.unwrap().unwrap() == 0
    }
}

async fn serve(mut incoming: Incoming, service: HostPort) {
    while let Some(Ok(stream)) = incoming.accept().await {
        tokio::spawn(service.clone().serve(stream));
    }
}

/// Whoever says something after it is heard, so that nobody waits to say it.
async fn ready(mut notices: mpsc::Receiver<Notice>) {
    loop {
        match notices.recv().await.unwrap() {
            Notice::Ready(_) => break,
            Notice::Failed(error) => panic!("{error}"),
            Notice::Event(_) | Notice::Ended => {}
        }
    }
    tokio::spawn(async move { while notices.recv().await.is_some() {} });
}

fn process(line: &str) -> oci::Process {
    oci::Process {
        Args: ["/bin/sh", "-c", line].map(str::to_owned).to_vec(),
        Env: vec!["PATH=/bin".to_owned()],
        Cwd: "/".to_owned(),
        ..Default::default()
    }
}

fn mount(kind: &str, destination: &str) -> oci::Mount {
    oci::Mount {
        destination: destination.to_owned(),
        source: kind.to_owned(),
        type_: kind.to_owned(),
        ..Default::default()
    }
}

/// Attestations in the broker's record.
fn attestations(stage: &Stage) -> usize {
    let entries = ["record", "export", "--kind", "attest"];
    let entries = stage.broker().unwrap().owner(&entries).unwrap();
    entries.stdout.lines().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_policy_governs_the_next_request_and_the_broker_hears_of_it_first() {
    if !need(&TOOLS) {
        return;
    }
    let stage = Stage::confidential().unwrap();
    let recipe = Recipe::busybox("governed").unwrap();
    let image = stage.push(&recipe, "governed").unwrap();
    let secret = stage.state.file("secret", SECRET).unwrap();
    let later = without(&LATER);
    let digest = Sha384::digest(&later);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = format!("sha384:{digest}");
    let release = RECORDED.replace("DIGEST", &digest);
    let release = stage.state.file("release.rego", release).unwrap();
    let broker = stage.broker().unwrap();
    broker.put("default/secret/one", &secret).unwrap();
    broker.release_policy(&release).unwrap();

    let subject = Subject::boot(&stage).await;
    let Subject { guest, .. } = &subject;
    guest
        .create_sandbox(POD, POD, vec![], vec![])
        .await
        .unwrap();
    subject.run(&image).await;
    let place = CopyFileRequest {
        path: "/run/kata-containers/shared/containers/x".to_owned(),
        ..Default::default()
    };
    let copied = subject.calls.copy_file(Context::default(), &place).await;
    let error = GuestError::from(&copied.unwrap_err());
    assert_eq!(
        error.code,
        ErrorCode::Unimplemented,
        "whatever a policy says"
    );
    assert!(guest.metrics().await.is_ok());
    assert!(!subject.has_the_secret("before").await);
    assert_eq!(attestations(&stage), 1);

    // One that is none changes nothing, and is no reason to attest.
    let error = subject.set_policy("package").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PolicyInvalid, "{error}");
    assert!(!subject.has_the_secret("still").await);
    assert_eq!(attestations(&stage), 1);

    subject.set_policy(&later).await.unwrap();
    let error = guest.metrics().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PolicyDenied, "{error}");
    assert!(subject.has_the_secret("after").await);
    assert_eq!(attestations(&stage), 2);
    refuses_people(&subject).await;
    subject.vm.kill().await;
}

/// Nobody gets in, and what runs is neither ended nor seen, nor held up because nobody sees it.
async fn refuses_people(subject: &Subject) {
    let id = |exec: &str| ProcessId {
        container: CONTAINER.to_owned(),
        exec: exec.to_owned(),
    };
    let guest = &subject.guest;
    let writes = format!("sleep 2; head -c {OUTPUT} /dev/zero; exit 7");
    let writer = id("writer");
    guest.exec_process(&writer, process(&writes)).await.unwrap();
    let last = without(&[&LATER[..], &LAST[..]].concat());
    subject.set_policy(&last).await.unwrap();
    let denied = |error: GuestError| assert_eq!(error.code, ErrorCode::PolicyDenied, "{error}");
    denied(subject.set_policy(ALLOW_ALL).await.unwrap_err());
    denied({ guest.exec_process(&id("late"), process("true")).await }.unwrap_err());
    denied(guest.signal_process(&writer, 9).await.unwrap_err());
    let input = WriteStreamRequest {
        container_id: CONTAINER.to_owned(),
        exec_id: writer.exec.clone(),
        data: b"go\n".to_vec(),
        ..Default::default()
    };
    let written = subject.calls.write_stdin(Context::default(), &input).await;
    denied(GuestError::from(&written.unwrap_err()));
    let mut seen = Vec::new();
    let mut output = guest.stream(&writer, StreamKind::Stdout).await.unwrap();
    let ended = timeout(CALL, guest.wait_process(&writer));
    let (read, ended) = tokio::join!(timeout(CALL, output.read_to_end(&mut seen)), ended);
    read.unwrap().unwrap();
    assert_eq!(ended.unwrap().unwrap(), 7);
    assert!(seen.is_empty(), "{} bytes are seen", seen.len());
}
