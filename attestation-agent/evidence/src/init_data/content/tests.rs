//! Init-data as owners write it, good and bad.

use std::collections::BTreeMap;

use super::*;
use crate::init_data::Algorithm;

fn content(files: &[(&str, &str)]) -> Result<Content, ContentError> {
    let data: BTreeMap<_, _> = files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    InitData::build(Algorithm::Sha384, data).unwrap().content()
}

const AA: &str = r#"
[token_configs]
[token_configs.coco_as]
url = 'http://127.0.0.1:8000'
[token_configs.kbs]
url = 'https://kbs.example:8080/'
cert = """
-----BEGIN CERTIFICATE-----
AAAA
-----END CERTIFICATE-----
"""
[eventlog_config]
init_pcr = 17
enable_eventlog = false
[log]
level = "info"
"#;

const CDH: &str = r#"
socket = 'unix:///run/confidential-containers/cdh.sock'
credentials = []
[aa]
aa_socket = "unix:///run/confidential-containers/attestation-agent/attestation-agent.sock"
[kbc]
name = 'cc_kbc'
url = 'https://kbs.example:8080'
kbs_cert = """
-----BEGIN CERTIFICATE-----
AAAA
-----END CERTIFICATE-----
"""
[image]
max_concurrent_layer_downloads_per_image = 3
image_security_policy_uri = "kbs:///default/security-policy/test"
authenticated_registry_credentials_uri = "kbs:///default/credential/test"
extra_root_certificates = ["PEM"]
[image.image_pull_proxy]
https_proxy = "http://proxy.local:3128"
no_proxy = ".local"
[image.registry_config]
unqualified-search-registries = ["docker.io", "example1.com"]
[[image.registry_config.registry]]
prefix = "example.com/banned"
blocked = true
[[image.registry_config.registry]]
location = "registry.local:5000"
insecure = true
[[image.registry_config.registry.mirror]]
location = "mirror.local"
[[image.registry_config.registry.mirror]]
location = "second.local"
pull-from-mirror = "digest-only"
[[image.registry_config.registry]]
location = "strict.local"
mirror-by-digest-only = true
"#;

#[test]
fn init_data_written_for_coco_is_obeyed() {
    let content = content(&[
        ("aa.toml", AA),
        ("cdh.toml", CDH),
        ("policy.rego", "package agent_policy"),
    ])
    .unwrap();
    let broker = content.broker.unwrap();
    assert_eq!(broker.url, "https://kbs.example:8080");
    assert!(broker.root_cert_pem.unwrap().contains("BEGIN CERTIFICATE"));
    assert_eq!(content.policy.unwrap(), "package agent_policy");
    let image = content.image;
    assert_eq!(
        image.security_policy,
        Some(Source::Broker(
            "kbs:///default/security-policy/test".to_owned()
        ))
    );
    assert_eq!(
        image.credentials_uri.unwrap(),
        "kbs:///default/credential/test"
    );
    assert_eq!(image.layers_at_once, Some(3));
    let Some(Source::Inline(registries)) = image.registries else {
        panic!("inline registries");
    };
    assert!(registries.rules[0].blocked);
    assert_eq!(registries.rules[1].prefix, "registry.local:5000");
    assert!(registries.rules[1].insecure);
    let mirrors = &registries.rules[1].mirrors;
    assert_eq!(mirrors[0].location, "mirror.local");
    assert_eq!(mirrors[0].pull, PullFromMirror::All);
    assert_eq!(mirrors[1].pull, PullFromMirror::DigestOnly);
    assert!(registries.rules[2].mirror_by_digest_only);
    assert_eq!(image.proxy.https, "http://proxy.local:3128");
    assert_eq!(
        (image.proxy.http.as_str(), image.proxy.exceptions.as_str()),
        ("", ".local")
    );
}

#[test]
fn limits_of_images_are_the_owners() {
    let text = "[image.limits]\nentries = 5\nratio_floor_bytes = 0\ndevices = 'refuse'\ntrusted_xattrs = 'keep'";
    let limits = content(&[("cdh.toml", text)]).unwrap().image.limits;
    let expected = ImageLimits {
        entries: Some(5),
        ratio_floor_bytes: Some(0),
        devices: Some(Devices::Refuse),
        trusted_xattrs: Some(TrustedXattrs::Keep),
        ..ImageLimits::default()
    };
    assert_eq!(limits, expected);
}

#[test]
fn where_images_are_kept_is_the_owners_word() {
    let store = |text: &str| content(&[("cdh.toml", text)]).unwrap().image.store;
    assert_eq!(store("[image]"), None);
    assert_eq!(store("[image]\nstore = 'memory'"), Some(Store::Memory));
    assert_eq!(store("[image]\nstore = 'scratch'"), Some(Store::Scratch));
}

#[test]
fn the_place_of_simple_signatures_may_be_inline_or_at_the_broker() {
    let lookaside = |text: &str| {
        let text = format!("[image]\n{text}");
        content(&[("cdh.toml", &text)]).map(|content| content.image.lookaside)
    };
    assert_eq!(
        lookaside("sigstore_config = '{}'").unwrap(),
        Some(Source::Inline("{}".to_owned()))
    );
    assert_eq!(
        lookaside("sigstore_config_uri = 'kbs:///a/b/c'").unwrap(),
        Some(Source::Broker("kbs:///a/b/c".to_owned()))
    );
    assert!(lookaside("sigstore_config_uri = 'file:///etc/x'").is_err());
}

#[test]
fn nothing_asked_for_is_nothing_set() {
    assert_eq!(content(&[]).unwrap(), Content::default());
    let empty_cert = "[token_configs.kbs]\nurl = 'http://1.2.3.4:8080'\ncert = ''";
    let broker = content(&[("aa.toml", empty_cert)]).unwrap().broker.unwrap();
    assert_eq!(broker.root_cert_pem, None);
}

#[test]
fn an_unknown_file_or_key_is_named() {
    let error = |files: &[(&str, &str)]| content(files).unwrap_err().to_string();
    assert!(error(&[("policy.reg", "")]).contains("`policy.reg`"));
    assert!(error(&[("aa.toml", "[token_configs.kbs]\nurl='https://a'\ncrt='x'")]).contains("crt"));
    assert!(error(&[("cdh.toml", "[image]\nimage_policy = 'x'")]).contains("image_policy"));
    assert!(
        error(&[("cdh.toml", "[image.registry_config]\nregistries = []")]).contains("registries")
    );
}

#[test]
fn what_is_known_and_not_supported_is_named_with_a_fix() {
    for (file, text, key) in [
        (
            "aa.toml",
            "[eventlog_config]\nenable_eventlog = true",
            "enable_eventlog",
        ),
        (
            "aa.toml",
            "[token_configs.kbs]\nurl='https://a'\ntee_key_algorithm='RSA-OAEP-256'",
            "tee_key_algorithm",
        ),
        (
            "cdh.toml",
            "credentials = [{path='a', resource_uri='b'}]",
            "credentials",
        ),
        (
            "cdh.toml",
            "skip_sealed_secret_verification = true\n[sealed_secret.verification_keys]\nk='{}'",
            "keep one",
        ),
        ("cdh.toml", "[sealed_secret]\nverification_key = 1", "key"),
        (
            "cdh.toml",
            "[kbc]\nname='offline_fs_kbc'\nurl=''",
            "kbc.name",
        ),
        ("cdh.toml", "[image]\nwork_dir = '/x'", "work_dir"),
        (
            "cdh.toml",
            "[image]\nimage_security_policy_uri = 'file:///p'",
            "file:///p",
        ),
        (
            "cdh.toml",
            "[image]\nmax_concurrent_layer_downloads_per_image = 0",
            "at least 1",
        ),
        (
            "cdh.toml",
            "[image.limits]\nentries = 0",
            "image.limits.entries",
        ),
        ("cdh.toml", "[image.limits]\nentires = 1", "entires"),
        ("cdh.toml", "[image.limits]\ndevices = 'some'", "some"),
        ("cdh.toml", "[image]\nstore = 'disk'", "disk"),
        (
            "cdh.toml",
            "[[image.registry_config.registry]]\ninsecure = true",
            "prefix",
        ),
        (
            "cdh.toml",
            "[image]\nimage_security_policy_uri = 'kbs:///a/b/c'\nimage_security_policy = '{}'",
            "keep one",
        ),
    ] {
        let error = content(&[(file, text)]).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn the_owner_says_whose_sealed_secrets_are_opened() {
    let sealed = |text: &str| content(&[("cdh.toml", text)]).unwrap().sealed;
    assert_eq!(sealed(""), SealedSecrets::default());
    assert!(sealed("skip_sealed_secret_verification = true").skip_verification);
    let text = "[sealed_secret.verification_keys]\n\"kbs:///a/b/c\" = '{}'";
    assert_eq!(sealed(text).verification_keys["kbs:///a/b/c"], "{}");
}

#[test]
fn the_owner_says_where_workloads_find_their_guest() {
    let api = |text: &str| content(&[("cdh.toml", text)]).map(|content| content.workload_api);
    let usual = api("").unwrap();
    assert!(usual.rest && !usual.sockets);
    let other = api("[workload_api]\nrest = false\nsockets = true").unwrap();
    assert!(!other.rest && other.sockets);
    assert!(api("[workload_api]\nsocket = true").is_err());
}

#[test]
fn two_brokers_are_refused() {
    let cdh = "[kbc]\nname='cc_kbc'\nurl='https://other:8080'";
    assert!(matches!(
        content(&[("aa.toml", AA), ("cdh.toml", cdh)]),
        Err(ContentError::BrokerUrl { .. })
    ));
    let cdh = "[kbc]\nname='cc_kbc'\nurl='https://kbs.example:8080'\nkbs_cert='other'";
    assert_eq!(
        content(&[("aa.toml", AA), ("cdh.toml", cdh)]),
        Err(ContentError::BrokerCert)
    );
    assert!(content(&[("aa.toml", "[token_configs.kbs]\nurl='ftp://a'")]).is_err());
}

#[test]
fn the_owner_says_what_the_hosts_mirror_may_know_of() {
    let host_mirror = |line: &str| {
        let text = format!("[image]\n{line}\n");
        content(&[("cdh.toml", text.as_str())]).map(|content| content.image.host_mirror)
    };
    assert_eq!(host_mirror(""), Ok(None));
    for (word, meant) in [
        ("off", HostMirror::Off),
        ("encrypted", HostMirror::Encrypted),
        ("all", HostMirror::All),
    ] {
        assert_eq!(
            host_mirror(&format!("host_mirror = {word:?}")),
            Ok(Some(meant))
        );
    }
    assert!(host_mirror("host_mirror = \"some\"").is_err());
}
