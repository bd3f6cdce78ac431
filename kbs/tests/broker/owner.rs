//! What owners do: initialise, administer by token, and lose nothing that was answered.

use crate::deployment;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use deployment::{Deployment, Guest, SECRET, fetch, kbs};
use http::{Method, StatusCode};
use kbs_protocol::ErrorKind;
use serde_json::{Value, json};

const ALLOW_ALL: &str = "package policy\nallow := true\n";

#[test]
fn init_keeps_private_files_private_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let broker = dir.path().join("broker");
    let init = || kbs().args(["init", "--dir"]).arg(&broker).output().unwrap();
    deployment::succeed(&init());
    let mode = |name: &str| {
        fs::metadata(broker.join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    for name in [
        "admin.key",
        "server.key",
        "store.key",
        "tls-root.key",
        "token.key",
    ] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    assert_eq!(mode(""), 0o700);
    let again = init();
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("never overwritten"));
}

#[test]
fn a_configuration_with_an_unknown_key_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let broker = dir.path().join("broker");
    deployment::succeed(&kbs().args(["init", "--dir"]).arg(&broker).output().unwrap());
    let path = broker.join("kbs.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("lisen = 1\n{text}")).unwrap();
    let output = kbs()
        .args(["serve", "--config"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("lisen"));
}

#[tokio::test]
async fn nothing_is_administered_without_a_token_of_a_role_that_may() {
    let deployment = Deployment::start(&["sample"]);
    let key = deployment.path("admin.key");
    let reader = kbs()
        .args(["token", "--role", "reader", "--admin-key"])
        .arg(&key)
        .output()
        .unwrap();
    let reader = format!(
        "Bearer {}",
        String::from_utf8(reader.stdout).unwrap().trim()
    );
    let guest = Guest::challenged(&deployment, None).await;
    let guest = format!("Bearer {}", guest.token(&deployment).await);
    for (method, path) in [
        (Method::POST, "resource/a/b/c"),
        (Method::DELETE, "resource/a/b/c"),
        (Method::GET, "resource"),
        (Method::POST, "resource-policy"),
        (Method::GET, "resource-policy"),
        (Method::GET, "resource-policy/resource-policy"),
        (Method::DELETE, "resource-policy"),
        (Method::GET, "resource-policy/a/b"),
        (Method::POST, "resource-policy/a/b"),
        (Method::DELETE, "resource-policy/a/b"),
        (Method::GET, "resource-policy-history/a/b"),
        (Method::POST, "attestation-policy"),
        (Method::GET, "attestation-policy"),
        (Method::GET, "attestation-policy/default_cpu"),
        (Method::DELETE, "attestation-policy/default_cpu"),
        (Method::GET, "attestation-policy-history/default_cpu"),
        (Method::POST, "reference-value"),
        (Method::GET, "reference-value"),
        (Method::GET, "reference-value/svn"),
        (Method::DELETE, "reference-value/svn"),
        (Method::GET, "reference-value-history/svn"),
        (Method::GET, "explain/x"),
        (Method::GET, "record"),
        (Method::GET, "key"),
        (Method::GET, "resource-history/a/b/c"),
    ] {
        let none = deployment.ask(method.clone(), path, &[], "x").await;
        assert_eq!(none.refusal().0, ErrorKind::AdminAuthAccess, "{path}");
        let attested = [("authorization", guest.as_str())];
        let attested = deployment.ask(method.clone(), path, &attested, "x").await;
        assert_eq!(attested.refusal().0, ErrorKind::AdminAuthAccess, "{path}");
        let reader = [("authorization", reader.as_str())];
        let reader = deployment.ask(method, path, &reader, "x").await;
        assert_eq!(reader.refusal().0, ErrorKind::AdminRoleDenied, "{path}");
    }
}

#[tokio::test]
async fn resources_are_set_listed_read_and_deleted() {
    let deployment = Deployment::start(&["sample"]);
    let secret = deployment.write("secret", SECRET);
    for path in ["a/b/c", "a/b/d", "a/b/c"] {
        deployment.own(&["resource", "set", path, "--file", &secret]);
    }
    let list = deployment.own(&["resource", "list"]);
    assert_eq!(list.lines().count(), 2, "{list}");
    let metadata: Value =
        serde_json::from_str(&deployment.own(&["resource", "get-metadata", "a/b/c"])).unwrap();
    assert_eq!(
        (&metadata["version"], &metadata["bytes"]),
        (&json!(2), &json!(SECRET.len()))
    );
    let policy = deployment.write("policy.rego", ALLOW_ALL);
    deployment.own(&["policy", "set", "--file", &policy]);
    assert_eq!(deployment.own(&["policy", "get"]), ALLOW_ALL);
    let guest = Guest::challenged(&deployment, None).await;
    let token = guest.token(&deployment).await;
    assert_eq!(
        fetch(&deployment, &token, "a/b/c").await.status,
        StatusCode::OK
    );
    deployment.own(&["resource", "delete", "a/b/c"]);
    let (kind, error) = fetch(&deployment, &token, "a/b/c").await.refusal();
    assert_eq!(kind, ErrorKind::ResourceNotFound);
    let told = deployment.own(&["explain", &error.ticket.unwrap()]);
    for part in ["there is no such resource", "kbs resource set a/b/c"] {
        assert!(told.contains(part), "{told}");
    }
    let gone = deployment.owner(&["resource", "delete", "a/b/c"]);
    assert!(!gone.status.success());
    let climbing = deployment.owner(&["resource", "set", "../b/c", "--file", &secret]);
    assert!(!climbing.status.success());
}

#[tokio::test]
async fn a_policy_that_does_not_compile_is_refused_and_the_old_one_stays() {
    let deployment = Deployment::start(&["sample"]);
    let before = deployment.own(&["policy", "get"]);
    for text in ["package policy\nallow {", "package other\nallow := true"] {
        let policy = deployment.write("policy.rego", text);
        assert!(
            !deployment
                .owner(&["policy", "set", "--file", &policy])
                .status
                .success()
        );
    }
    assert_eq!(deployment.own(&["policy", "get"]), before);
    let bearer = format!("Bearer {}", deployment.admin_token());
    let admin = [("authorization", bearer.as_str())];
    let ids = deployment
        .ask(Method::GET, "resource-policy", &admin, "")
        .await;
    assert_eq!(ids.json(), json!(["resource-policy"]));
    let large = json!({"policy": BASE64_URL_SAFE_NO_PAD.encode("#".repeat(3 << 20))}).to_string();
    let answer = deployment
        .ask(Method::POST, "resource-policy", &admin, large)
        .await;
    assert_eq!(answer.refusal().0, ErrorKind::PayloadTooLarge);
    let large = vec![0; (2 << 20) + 1];
    let answer = deployment
        .ask(Method::POST, "resource/a/b/c", &admin, large)
        .await;
    assert_eq!(answer.refusal().0, ErrorKind::PayloadTooLarge);
}

#[tokio::test]
async fn reference_values_and_an_appraisal_policy_change_the_token() {
    let deployment = Deployment::start(&["sample"]);
    let rego = "package policy\ndefault hardware := 97\nhardware := 2 if { input.sample.svn in query_reference_value(\"svn\") }\ntrust_claims := {\"hardware\": hardware}\n";
    let policy = deployment.write("appraisal.rego", rego);
    deployment.own(&["policy", "set", "--appraisal", "--file", &policy]);
    assert_eq!(deployment.own(&["policy", "get", "--appraisal"]), rego);
    let status = async || {
        let token = Guest::challenged(&deployment, None)
            .await
            .token(&deployment)
            .await;
        let claims = token.split('.').nth(1).unwrap();
        let claims: Value =
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        claims["submods"]["cpu0"]["ear.status"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(status().await, "contraindicated");
    let bearer = format!("Bearer {}", deployment.admin_token());
    let admin = [("authorization", bearer.as_str())];
    // {"svn": ["1"]}
    let message = json!({"version": "0.1.0", "type": "sample", "payload": "eyJzdm4iOiBbIjEiXX0="});
    let answer = deployment
        .ask(Method::POST, "reference-value", &admin, message.to_string())
        .await;
    assert_eq!(answer.status, StatusCode::OK);
    let value = deployment
        .ask(Method::GET, "reference-value/svn", &admin, "")
        .await;
    assert_eq!(value.json(), json!(["1"]));
    assert_eq!(status().await, "affirming");
    let swid = json!({"version": "0.1.0", "type": "swid", "payload": ""}).to_string();
    let answer = deployment
        .ask(Method::POST, "reference-value", &admin, swid)
        .await;
    let (kind, error) = answer.refusal();
    assert_eq!(kind, ErrorKind::NotImplemented);
    for known in ["`sample`", "`corim`"] {
        assert!(error.detail.contains(known), "{}", error.detail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_during_writes_loses_nothing_that_was_answered() {
    let mut deployment = Deployment::start(&["sample"]);
    let bearer = format!("Bearer {}", deployment.admin_token());
    let mut expected = 0;
    for round in 0..3 {
        let answered = Arc::new(AtomicUsize::new(0));
        {
            let client = deployment.client();
            let (url, bearer, answered) = (
                deployment.url.clone(),
                bearer.clone(),
                Arc::clone(&answered),
            );
            let writer = tokio::spawn(async move {
                for number in 0.. {
                    let request =
                        http::Request::post(format!("{url}/kbs/v0/resource/r{round}/x/n{number}"))
                            .header("authorization", &bearer)
                            .body(bytes::Bytes::from(vec![b'x'; 4096]))
                            .unwrap();
                    match client.send(request).await {
                        Ok(response) if response.status().is_success() => {
                            answered.fetch_add(1, Ordering::SeqCst);
                        }
                        _ => break,
                    }
                }
            });
            tokio::time::sleep(Duration::from_millis(400)).await;
            deployment.crash_and_restart();
            writer.await.unwrap();
        }
        let answered = answered.load(Ordering::SeqCst);
        assert!(answered > 0, "no write was answered");
        expected += answered;
        let list = deployment.own(&["resource", "list"]);
        let kept = list
            .lines()
            .filter(|l| l.contains(&format!("r{round}/")))
            .count();
        assert!(kept >= answered, "{kept} of {answered} writes were kept");
    }
    assert!(deployment.own(&["resource", "list"]).lines().count() >= expected);
    let policy = deployment.write("policy.rego", ALLOW_ALL);
    deployment.own(&["policy", "set", "--file", &policy]);
    deployment.crash_and_restart();
    assert_eq!(deployment.own(&["policy", "get"]), ALLOW_ALL);
    let guest = Guest::challenged(&deployment, None).await;
    let token = guest.token(&deployment).await;
    let answer = fetch(&deployment, &token, "r0/x/n0").await;
    let jwe = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(guest.key.open(&jwe).ok().unwrap().expose(), [b'x'; 4096]);
}

#[tokio::test]
async fn a_broker_that_is_told_to_stop_ends_in_order() {
    let mut deployment = Deployment::start(&["sample"]);
    let idle = tokio::net::TcpStream::connect(deployment.url.trim_start_matches("https://"))
        .await
        .unwrap();
    Guest::challenged(&deployment, None)
        .await
        .token(&deployment)
        .await;
    let pid = deployment.pid().to_string();
    let told = std::process::Command::new("kill")
        .args(["-TERM", &pid])
        .status()
        .unwrap();
    assert!(told.success());
    assert!(deployment.wait().success());
    assert!(deployment.log().contains("stopped"));
    drop(idle);
}

#[test]
fn what_cannot_be_printed_is_an_error_and_whoever_has_read_enough_is_none() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let printed = kbs().arg("openapi").stdout(full).output().unwrap();
    let error = String::from_utf8_lossy(&printed.stderr);
    assert_eq!(printed.status.code(), Some(1), "{error}");
    assert!(
        error.starts_with("kbs: write to standard output"),
        "{error}"
    );

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let printed = kbs().arg("openapi").stdout(writer).output().unwrap();
    deployment::succeed(&printed);
    assert!(printed.stderr.is_empty());
}

#[test]
fn an_empty_secret_has_to_be_meant() {
    let deployment = Deployment::start(&["sample"]);
    let empty = deployment.write("empty", "");
    let set = ["resource", "set", "a/b/c", "--file", &empty];
    let refused = deployment.owner(&set);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--empty"));
    assert_eq!(deployment.own(&["resource", "list"]), "");
    deployment.own(&["resource", "set", "a/b/c", "--file", &empty, "--empty"]);
    assert!(deployment.own(&["resource", "list"]).contains("a/b/c"));
}
