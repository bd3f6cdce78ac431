//! The broker's client against brokers that are good, busy, strict and hostile.

#![allow(clippy::unwrap_used, missing_docs)]

mod asked;
mod beside;
mod doors;
mod script;
mod services;
mod tokens;
mod unreachable;
mod words;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use attestation_agent::{Broker, BrokerError, ResourceUri, Secret, Step};
use evidence::init_data::{Algorithm, InitData};
use kbs_protocol::{JweError, KeyKind, TeeKeyPair, seal};
use serde_json::json;

use script::{Identity, Reply, SECRET, Script, guest, start};

fn uri() -> ResourceUri {
    "kbs:///default/key/1".parse().unwrap()
}

/// The error of a secret; a secret itself cannot be printed.
fn error(outcome: Result<Secret, BrokerError>) -> BrokerError {
    match outcome {
        Ok(_) => panic!("a secret came"),
        Err(error) => error,
    }
}

async fn pair() -> (Arc<Script>, Broker) {
    let identity = Identity::new();
    let (script, port) = start(&identity).await;
    (script, guest(port, &identity.pem, None))
}

#[tokio::test]
async fn one_attestation_serves_every_secret() {
    let (script, broker) = pair().await;
    let broker = Arc::new(broker);
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let broker = broker.clone();
            tokio::spawn(async move { broker.resource(&uri()).await })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().ok().unwrap().expose(), SECRET);
    }
    assert_eq!((script.count("auth"), script.count("attest")), (1, 1));
    assert_eq!(script.count("resource"), 32);
    assert_eq!(broker.attestation().unwrap().number, 1);
    let before = script.connections.load(Ordering::SeqCst);
    assert!(broker.resource(&uri()).await.is_ok());
    assert_eq!(script.connections.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn the_messages_are_those_of_the_protocol() {
    let identity = Identity::new();
    let (script, port) = start(&identity).await;
    let init_data = InitData::build(Algorithm::Sha384, [].into()).unwrap();
    let broker = guest(port, &identity.pem, Some(&init_data));
    assert!(broker.attest().await.unwrap().took > Duration::ZERO);
    let bodies = script.bodies.lock().unwrap();
    assert_eq!(
        bodies[0],
        json!({
            "version": "0.4.0",
            "tee": "sample",
            "extra-params": {
                "supported-hash-algorithms": ["sha384"],
                "cloister-supported": ["raw-evidence", "event-log", "resource"],
            },
        })
    );
    assert_eq!(
        bodies[1]["init-data"],
        json!({"format": "toml", "body": init_data.text()})
    );
    assert_eq!(bodies[1]["tee-evidence"]["additional_evidence"], "");
    let evidence = &bodies[1]["tee-evidence"]["primary_evidence"];
    assert_eq!(evidence["svn"], "1");
    assert_eq!(evidence["init_data"], init_data.digest().hex());
}

#[tokio::test]
async fn a_man_in_the_middle_gets_nothing() {
    let real = Identity::new();
    let (script, port) = start(&Identity::new()).await;
    let broker = guest(port, &real.pem, None);
    let error = error(broker.resource(&uri()).await);
    assert!(matches!(error, BrokerError::Untrusted { .. }), "{error}");
    assert_eq!(script.connections.load(Ordering::SeqCst), 1);
    assert_eq!(script.count("auth"), 0);
}

/// Somebody on the way who has a certificate of the right root for another name, no TLS at all, or an address to send
/// guests to. None of them sees evidence.
#[tokio::test]
async fn no_substitute_for_the_broker_is_told_anything() {
    let other_name = Identity::of("other.test");
    let (script, port) = start(&other_name).await;
    let broker = guest(port, &other_name.pem, None);
    let refused = error(broker.resource(&uri()).await);
    assert!(
        matches!(refused, BrokerError::Untrusted { .. }),
        "{refused}"
    );
    assert_eq!(script.count("auth"), 0);

    let identity = Identity::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut first = vec![0; 2048];
        let read = stream.read(&mut first).await.unwrap();
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            .await;
        first.truncate(read);
        first
    });
    let refused = error(guest(port, &identity.pem, None).resource(&uri()).await);
    assert!(
        matches!(refused, BrokerError::Unreachable { .. }),
        "{refused}"
    );
    let heard = heard.await.unwrap();
    assert!(!String::from_utf8_lossy(&heard).contains("sample"));

    let (elsewhere, other_port) = start(&identity).await;
    let (script, port) = start(&identity).await;
    for status in [301, 302, 307, 308] {
        let to = format!("https://kbs.test:{other_port}/kbs/v0/auth");
        script.says("auth", [Reply::Redirect(status, to)]);
        let refused = error(guest(port, &identity.pem, None).resource(&uri()).await);
        let is_final = matches!(
            refused,
            BrokerError::Protocol { .. } | BrokerError::Refused { .. }
        );
        assert!(is_final, "{status}: {refused}");
    }
    assert_eq!(elsewhere.count("auth"), 0);
}

/// A broker, or who stands in its place, may give an old challenge again. What it gets is evidence of the same key, to
/// which everything is sealed.
#[tokio::test]
async fn a_challenge_that_comes_again_is_answered_for_the_same_key() {
    let (script, broker) = pair().await;
    broker.attest().await.unwrap();
    let stale = Reply::error(401, "TokenVerifierError", None);
    script.says("resource", [stale]);
    assert!(broker.resource(&uri()).await.is_ok());
    let bodies = script.bodies.lock().unwrap();
    let key = |at: usize| bodies[at]["runtime-data"]["tee-pubkey"].clone();
    assert_eq!(
        bodies[1]["runtime-data"]["nonce"],
        bodies[3]["runtime-data"]["nonce"]
    );
    assert_eq!(key(1), key(3));
}

#[tokio::test]
async fn what_is_not_the_protocol_is_refused_at_once() {
    for (endpoint, step) in [
        ("auth", Step::Auth),
        ("attest", Step::Attest),
        ("resource", Step::Resource),
    ] {
        for garbage in ["", "{", "[]", "<html>", r#"{"nonce":1}"#, r#"{"token":""}"#] {
            let (script, broker) = pair().await;
            script.says(endpoint, [Reply::Status(200, garbage.to_owned())]);
            let error = error(broker.resource(&uri()).await);
            assert!(
                matches!(error, BrokerError::Protocol { step: at, .. } if at == step),
                "{endpoint} {garbage}: {error}"
            );
            assert_eq!(script.count(endpoint), 1);
        }
    }
}

#[tokio::test]
async fn an_answer_has_a_cap() {
    for (endpoint, step) in [
        ("auth", Step::Auth),
        ("attest", Step::Attest),
        ("resource", Step::Resource),
    ] {
        for status in [200, 500] {
            let (script, broker) = pair().await;
            script.says(endpoint, [Reply::Status(status, "x".repeat(4 << 20))]);
            let error = error(broker.resource(&uri()).await);
            assert!(
                matches!(error, BrokerError::TooLarge { step: at, .. } if at == step),
                "{endpoint}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn a_slow_broker_meets_the_deadline() {
    let (script, broker) = pair().await;
    script.says("attest", vec![Reply::Hang; 9]);
    let started = Instant::now();
    let error = error(broker.resource(&uri()).await);
    assert!(matches!(error, BrokerError::Unreachable { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_busy_broker_is_asked_again() {
    for endpoint in ["auth", "attest", "resource"] {
        let (script, broker) = pair().await;
        let busy = Reply::error(503, "Timeout", None);
        script.says(endpoint, [busy.clone(), busy]);
        assert_eq!(broker.resource(&uri()).await.ok().unwrap().expose(), SECRET);
        assert_eq!(script.count(endpoint), 3);
    }
}

#[tokio::test]
async fn a_secret_for_another_key_is_not_opened() {
    let (script, broker) = pair().await;
    let other = TeeKeyPair::generate(KeyKind::P256).unwrap();
    let replayed = seal(&other.public(), SECRET).unwrap();
    let body = serde_json::to_string(&replayed).unwrap();
    script.says("resource", [Reply::Status(200, body)]);
    let error = error(broker.resource(&uri()).await);
    assert!(
        matches!(
            error,
            BrokerError::Open {
                cause: JweError::OtherKey,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn padded_base64_is_not_opened() {
    let (script, broker) = pair().await;
    broker.attest().await.unwrap();
    let body = json!({
        "protected": "e30=", "encrypted_key": "AA==", "iv": "AA==", "ciphertext": "", "tag": "",
    });
    script.says("resource", [Reply::Status(200, body.to_string())]);
    let error = error(broker.resource(&uri()).await);
    assert!(
        matches!(
            error,
            BrokerError::Open {
                cause: JweError::Encoding(_),
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_denial_is_final_and_carries_its_ticket() {
    let (script, broker) = pair().await;
    script.says("resource", [Reply::error(403, "PolicyDeny", Some("T-17"))]);
    let denied = error(broker.resource(&uri()).await);
    assert_eq!(denied.ticket(), Some("T-17"));
    assert_eq!(
        denied.to_string(),
        "broker denies kbs:///default/key/1: its owner reads the cause with `kbs explain T-17`"
    );
    assert_eq!((script.count("attest"), script.count("resource")), (1, 1));
    // Trustee says 401 to a denial and to a missing resource.
    script.says("resource", [Reply::error(401, "PolicyDeny", None)]);
    let denied = error(broker.resource(&uri()).await);
    assert!(matches!(denied, BrokerError::Denied { .. }), "{denied}");
    for (status, kind) in [(404, "ResourceNotFound"), (401, "PluginInternalError")] {
        script.says("resource", [Reply::error(status, kind, None)]);
        let missing = error(broker.resource(&uri()).await);
        assert!(matches!(missing, BrokerError::NotFound { .. }), "{missing}");
        // Who may not know which of the two it is hears the same.
        assert!(denied.withheld().is_some());
        assert_eq!(missing.withheld(), denied.withheld());
    }
    assert_eq!((script.count("attest"), script.count("resource")), (1, 4));
}

#[tokio::test]
async fn rejected_evidence_is_final_and_shared_by_all_who_wait() {
    let (script, broker) = pair().await;
    script.says(
        "attest",
        [Reply::error(401, "AttestationError", Some("T-1"))],
    );
    let broker = Arc::new(broker);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let broker = broker.clone();
            tokio::spawn(async move { broker.resource(&uri()).await })
        })
        .collect();
    for task in tasks {
        let error = error(task.await.unwrap());
        assert!(matches!(error, BrokerError::Rejected { .. }), "{error}");
        assert_eq!(error.ticket(), Some("T-1"));
    }
    assert_eq!(script.count("attest"), 1);
    // It is no verdict for ever: who comes later tries anew.
    assert!(broker.resource(&uri()).await.is_ok());
}

#[tokio::test]
async fn another_version_is_named() {
    let trustee = r#"{"type":"https://github.com/confidential-containers/kbs/errors/AttestationError","detail":"Attestation error: RCAR handshake Auth failed: KBS Client Protocol Version Mismatch: expect =0.5.0 while the request is 0.4.0"}"#;
    for reply in [
        Reply::error(400, "ProtocolVersion", None),
        Reply::Status(401, trustee.to_owned()),
    ] {
        let (script, broker) = pair().await;
        script.says("auth", [reply]);
        let error = error(broker.resource(&uri()).await);
        assert!(matches!(error, BrokerError::Version { .. }), "{error}");
        assert_eq!(script.count("auth"), 1);
    }
}

#[tokio::test]
async fn a_challenge_without_a_session_or_with_another_hash_is_refused() {
    for challenge in [
        json!({"nonce": "n", "extra-params": ""}),
        json!({"nonce": "n", "extra-params": {"selected-hash-algorithm": "sm3"}}),
        json!({"nonce": "", "extra-params": ""}),
    ] {
        let (script, broker) = pair().await;
        script.says("auth", [Reply::Status(200, challenge.to_string())]);
        let error = error(broker.resource(&uri()).await);
        assert!(
            matches!(
                error,
                BrokerError::Protocol {
                    step: Step::Auth,
                    ..
                }
            ),
            "{error}"
        );
    }
}
