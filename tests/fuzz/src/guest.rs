//! What the guest reads of its host: init-data in all its forms, the kernel's command line, policy.

use agent_api::{StreamLine, TeeCall, limit};
use evidence::init_data::{Content, InitData, InitDataDigest, annotation, disk};
use futures_util::FutureExt;

use crate::{Target, text, texts};

/// What stands before an item of an answer.
const LENGTH_BYTES: usize = 4;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "init_data_text",
        run: init_data_text,
        seeds: documents,
    },
    Target {
        name: "init_data_disk",
        run: init_data_disk,
        seeds: disks,
    },
    Target {
        name: "init_data_annotation",
        run: init_data_annotation,
        seeds: annotations,
    },
    Target {
        name: "init_data_digest",
        run: init_data_digest,
        seeds: digests,
    },
    Target {
        name: "agent_cmdline",
        run: agent_cmdline,
        seeds: cmdlines,
    },
    Target {
        name: "stream_line",
        run: stream_line,
        seeds: stream_lines,
    },
    Target {
        name: "tee_answer",
        run: tee_answer,
        seeds: tee_answers,
    },
    Target {
        name: "policy_agent",
        run: policy_agent,
        seeds: policies,
    },
];

fn stream_line(data: &[u8]) {
    if let Ok(line) = StreamLine::parse(data) {
        let written = format!("{line}\n");
        assert_eq!(written.as_bytes(), data, "a line has one form");
    }
}

/// What a host gives for a simulated TEE's report, and for its log.
fn tee_answer(data: &[u8]) {
    for call in [TeeCall::Report([0; 64]), TeeCall::Log] {
        let mut rest = data;
        // All is there, so that nobody waits.
        let read = agent::firmware::items(&mut rest, call).now_or_never();
        let Some(Ok(items)) = read else {
            assert!(read.is_some(), "it waits for more than there is");
            continue;
        };
        assert_eq!(items.len(), call.items());
        assert!(items.iter().all(|item| item.len() <= limit::MAX_TEE_ITEM));
        let framed = items.iter().map(|item| LENGTH_BYTES + item.len());
        assert_eq!(framed.sum::<usize>(), data.len() - rest.len());
    }
}

fn tee_answers() -> Vec<Vec<u8>> {
    let framed = |items: &[&[u8]]| {
        let item = |item: &&[u8]| {
            let length = u32::try_from(item.len()).unwrap_or(u32::MAX);
            [&length.to_le_bytes()[..], item].concat()
        };
        items.iter().flat_map(item).collect::<Vec<u8>>()
    };
    let long = vec![7; limit::MAX_TEE_ITEM + 1];
    vec![
        framed(&[b"a report", b"certificates"]),
        framed(&[b"a log", b""]),
        // One as long as it may be, and one that is too long.
        framed(&[&long[1..]]),
        framed(&[&long]),
    ]
}

fn stream_lines() -> Vec<Vec<u8>> {
    texts(&["STDIN web\n", "STDOUT web probe\n", "STDERR a.b_c-d 0\n"])
}

const DOCUMENT: &str = r#"version = "0.1.0"
algorithm = "sha256"
[data]
"aa.toml" = "[token_configs.kbs]\nurl = 'https://127.0.0.1:8080'\ncert = 'PEM'\n"
"cdh.toml" = "[image]\nextra_root_certificates = ['PEM']\n[kbc]\nname = 'cc_kbc'\nurl = 'https://127.0.0.1:8080'\n"
"policy.rego" = "package agent_policy\ndefault CreateSandboxRequest := true\n"
"#;

fn init_data_text(data: &[u8]) {
    let Ok(init_data) = InitData::parse(data) else {
        return;
    };
    assert_eq!(
        init_data.text().as_bytes(),
        data,
        "the text is what is hashed"
    );
    let _ = init_data.content();
    let _ = Content::try_from(&init_data);
}

fn init_data_disk(data: &[u8]) {
    let Ok(init_data) = disk::decode(data) else {
        return;
    };
    let again = disk::encode(&init_data).map(|bytes| disk::decode(bytes.as_slice()));
    assert!(again.is_ok_and(|read| read.is_ok_and(|read| read == init_data)));
}

fn init_data_annotation(data: &[u8]) {
    if let Some(text) = text(data) {
        let _ = annotation::decode(text);
    }
}

fn init_data_digest(data: &[u8]) {
    if let Some(digest) = text(data).and_then(|text| text.parse::<InitDataDigest>().ok()) {
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
}

fn agent_cmdline(data: &[u8]) {
    if let Some(text) = text(data) {
        let _ = text.parse::<agent::cmdline::Cmdline>();
    }
}

fn policy_agent(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(policy) = policies::agent::AgentPolicy::from_rego(text) {
        let _ = policy.decide(
            "CreateContainerRequest",
            serde_json::json!({"container_id": "a"}),
        );
    }
}

fn documents() -> Vec<Vec<u8>> {
    texts(&[
        DOCUMENT,
        "version = \"0.1.0\"\nalgorithm = \"sha512\"\n[data]\n",
    ])
}

fn disks() -> Vec<Vec<u8>> {
    let document = InitData::parse(DOCUMENT.as_bytes()).ok();
    document
        .and_then(|document| disk::encode(&document).ok())
        .into_iter()
        .collect()
}

fn annotations() -> Vec<Vec<u8>> {
    let document = InitData::parse(DOCUMENT.as_bytes()).ok();
    let value = document.and_then(|document| annotation::encode(&document).ok());
    value.map(String::into_bytes).into_iter().collect()
}

fn digests() -> Vec<Vec<u8>> {
    [("sha256", 64), ("sha384", 96), ("sha512", 128)]
        .map(|(name, digits)| format!("{name}:{}", "5e".repeat(digits / 2)).into_bytes())
        .to_vec()
}

fn cmdlines() -> Vec<Vec<u8>> {
    let digest = "5e".repeat(32);
    let full = format!(
        "quiet panic=-1 cloister.tee=sample cloister.init_data=sha256:{digest} \
         cloister.host_port=1031 cloister.log=debug"
    );
    texts(&["console=ttyS0 cloister.tee=none", &full])
}

fn policies() -> Vec<Vec<u8>> {
    texts(&[policies::agent::ALLOW_ALL, policies::agent::DENY_ALL])
}
