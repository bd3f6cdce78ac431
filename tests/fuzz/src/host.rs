//! What the host reads of its guest, of its users and of its operator.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agent_api::pull::pull_progress::Phase;
use agent_api::pull::{PullLayer, PullProgress};
use agent_api::{
    AgentLine, DialAnswer, ErrorCode, GuestError, HOST_KEY_BYTES, HostKey, HostLine, TeeCall, limit,
};
use protobuf::Message as _;
use shim::config::{Config, annotation, file};
use shim::creation::{Clock, Progress};

use crate::{Target, text, texts};

/// Registers of a TD, and items of the longest answer.
const TEE_REGISTERS: usize = 4;
const TEE_ITEMS: usize = 2;
/// Bytes of a sentence about a pull.
const SENTENCE_MAX: usize = 1024;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "host_line",
        run: host_line,
        seeds: lines,
    },
    Target {
        name: "tee_call",
        run: tee_call,
        seeds: calls,
    },
    Target {
        name: "dial_answer",
        run: dial_answer,
        seeds: answers,
    },
    Target {
        name: "guest_event",
        run: guest_event,
        seeds: events,
    },
    Target {
        name: "guest_error",
        run: guest_error,
        seeds: errors,
    },
    Target {
        name: "guest_pull_progress",
        run: pull_progress,
        seeds: pulls,
    },
    Target {
        name: "shim_config_file",
        run: config_file,
        seeds: files,
    },
    Target {
        name: "shim_annotation",
        run: config_annotation,
        seeds: annotations,
    },
];

fn host_line(data: &[u8]) {
    if let Ok(line) = HostLine::parse(data) {
        let written = format!("{line}\n");
        assert!(HostLine::parse(written.as_bytes()).is_ok(), "{written}");
    }
}

/// What any program of a guest may ask a simulated firmware: the words, and the line that brings them.
fn tee_call(data: &[u8]) {
    let Some(call) = text(data).and_then(|text| text.parse::<TeeCall>().ok()) else {
        return;
    };
    let written = call.to_string();
    // One form, but for the case of the digits.
    assert!(written.as_bytes().eq_ignore_ascii_case(data), "{written}");
    assert_eq!(written.parse(), Ok(call));
    if let TeeCall::Read(register) | TeeCall::Extend(register, _) = call {
        assert!(register < TEE_REGISTERS, "{written}");
    }
    assert!(call.items() <= TEE_ITEMS);
    let key = HostKey::from_bytes([7; HOST_KEY_BYTES]);
    let line = format!("{}\n", HostLine::Tee(key, call));
    assert!(line.len() <= limit::MAX_HOST_LINE, "{line}");
    assert_eq!(
        HostLine::parse(line.as_bytes()),
        Ok(HostLine::Tee(key, call))
    );
}

fn dial_answer(data: &[u8]) {
    if let Ok(answer) = DialAnswer::parse(data) {
        assert!(DialAnswer::parse(format!("{answer}\n").as_bytes()).is_ok());
    }
}

fn guest_event(data: &[u8]) {
    if let Some(line) = text(data).and_then(|text| AgentLine::from_line(text).ok()) {
        assert_eq!(AgentLine::from_line(&line.to_line()).ok(), Some(line));
    }
}

fn guest_error(data: &[u8]) {
    if let Some(error) = text(data).and_then(GuestError::parse) {
        assert_eq!(GuestError::parse(&error.to_string()), Some(error));
    }
}

/// An answer of the guest as it is on the wire, taken twice, because a speed needs two.
fn pull_progress(data: &[u8]) {
    let Ok(told) = PullProgress::parse_from_bytes(data) else {
        return;
    };
    let (mut progress, now) = (Progress::default(), Instant::now());
    progress.pull("registry.example/app:1");
    progress.take(&told, now);
    let later = now + Duration::from_secs(2);
    progress.take(&told, later);
    assert!(progress.layers.len() <= limit::MAX_PULL_LAYERS);
    assert!(progress.fetched() <= progress.size());
    assert!(progress.unpacked() <= progress.layers.len());
    // However much the guest tells, the host says a sentence of it.
    let error = progress.overdue(Duration::from_secs(2), Clock::Caller, later);
    assert!(error.message.len() < SENTENCE_MAX, "{error}");
    assert_eq!(GuestError::parse(&error.to_string()), Some(error));
    let written = serde_json::to_string(&progress).unwrap_or_default();
    assert!(
        serde_json::from_str::<Progress>(&written).is_ok(),
        "{written}"
    );
}

fn config_file(data: &[u8]) {
    let Ok(dir) = tempfile::tempdir() else { return };
    let path = dir.path().join("configuration.toml");
    if std::fs::write(&path, data).is_ok() {
        let _ = file::load(Some(&path));
    }
}

/// The first line is the key, the rest is its value.
fn config_annotation(data: &[u8]) {
    let Some((key, value)) = text(data).and_then(|text| text.split_once('\n')) else {
        return;
    };
    let config = Config {
        enable_annotations: vec![".*".to_owned()],
        valid_hypervisor_paths: vec!["/usr/*/qemu-[a-z]*".to_owned()],
        ..Config::default()
    };
    let _ = annotation::apply(
        config,
        &BTreeMap::from([(key.to_owned(), value.to_owned())]),
    );
}

fn lines() -> Vec<Vec<u8>> {
    texts(&[
        "READY 0123456789abcdef0123456789abcdef {\"version\":\"0.1.0\",\"kernel_ms\":900,\"agent_ms\":40}\n",
        "FAIL {\"code\":\"init-data-mismatch\",\"phase\":\"init-data\",\"message\":\"no\"}\n",
        "DIAL 0123456789abcdef0123456789abcdef registry.example:443\n",
        "DIAL 0123456789abcdef0123456789abcdef [fd00::1]:5000\n",
        "MIRROR 0123456789abcdef0123456789abcdef\n",
        "TEE 0123456789abcdef0123456789abcdef LOG\n",
    ])
}

fn calls() -> Vec<Vec<u8>> {
    let calls = [
        TeeCall::Report([0xa7; 64]),
        TeeCall::Read(0),
        TeeCall::Read(TEE_REGISTERS - 1),
        TeeCall::Extend(TEE_REGISTERS - 1, [0x5e; 48]),
        TeeCall::Log,
    ];
    calls.map(|call| call.to_string().into_bytes()).to_vec()
}

fn answers() -> Vec<Vec<u8>> {
    texts(&["OK\n", "ERR host-not-allowed it is not in relay.allow\n"])
}

fn events() -> Vec<Vec<u8>> {
    texts(&[
        "{\"phase\":\"pull\",\"ms\":17,\"container\":\"c1\"}\n",
        "{\"phase\":\"attest\",\"ms\":1}\n",
    ])
}

fn errors() -> Vec<Vec<u8>> {
    let plain = GuestError::new(ErrorCode::DigestMismatch, "pull", "layer sha256:00: not it");
    let ticket = plain.clone().with_ticket("0123456789abcdef");
    texts(&[&plain.to_string(), &ticket.to_string()])
}

fn pulls() -> Vec<Vec<u8>> {
    let layer = |size, fetched| PullLayer {
        size,
        fetched,
        unpacked: size == fetched,
        ..Default::default()
    };
    let told = |phase: Phase, layers: Vec<PullLayer>| PullProgress {
        number: 7,
        phase: phase.into(),
        layers,
        ..Default::default()
    };
    let many = vec![layer(u64::MAX, u64::MAX); limit::MAX_PULL_LAYERS + 1];
    [
        told(Phase::RESOLVE, Vec::new()),
        told(Phase::LAYERS, vec![layer(300 << 20, 41 << 20), layer(5, 5)]),
        told(Phase::LAYERS, vec![layer(1, 2), layer(0, 0)]),
        told(Phase::PUBLISH, many),
        told(Phase::ATTEST, vec![layer(5, 5)]),
    ]
    .iter()
    .filter_map(|told| told.write_to_bytes().ok())
    .collect()
}

fn files() -> Vec<Vec<u8>> {
    texts(&[
        "[hypervisor.qemu]\npath = \"/usr/bin/qemu-system-x86_64\"\nkernel = \"/k\"\n\
         default_vcpus = 2\ndefault_memory = 512\nshared_fs = \"none\"\nkernel_params = \"quiet\"\n\
         enable_annotations = [\"cc_init_data\"]\n[agent.kata]\nreconnect_timeout_ms = 1000\n\
         [runtime]\nexperimental = [\"force_guest_pull\"]\n[cloister]\ntee = \"sample\"\n\
         [relay]\nallow = [\"127.0.0.1:5000\"]\n[mirror]\ndirectory = \"/m\"\nsize_mib = 1\n",
        "[hypervisor.clh]\ndefault_vcpus = -1.5\nvalid_hypervisor_paths = [\"/a/[^b]*\"]\n\
         [[hypervisor.clh.guest_extension_images]]\nname = \"coco\"\n[hypervisor.clh.factory]\n\
         enable_template = false\n[runtime]\nhypervisor_name = \"clh\"\nemptydir_mode = \"shared-fs\"\n",
    ])
}

fn annotations() -> Vec<Vec<u8>> {
    texts(&[
        "io.katacontainers.config.hypervisor.default_vcpus\n2",
        "io.katacontainers.config.hypervisor.kernel_params\nquiet a=b",
        "io.katacontainers.config.runtime.disable_guest_seccomp\ntrue",
        "io.katacontainers.config.hypervisor.default_memory\n2Gi",
        "io.katacontainers.config.hypervisor.path\n/usr/bin/qemu-system-x86_64",
        "io.katacontainers.config.agent.kernel_modules\na b=1;c",
        "io.katacontainers.container.resource.swappiness\n60",
    ])
}
