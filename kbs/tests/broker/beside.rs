//! A resource that is asked for with the evidence is released as one that is asked for alone.

use http::StatusCode;
use kbs_protocol::{ErrorKind, Released, TokenResponse};
use serde_json::Value;

use crate::deployment::{Deployment, Guest, SECRET, fetch};
use crate::handshake::{INIT_DATA, PATH, demo};

/// The token and what came with it.
async fn with_token(guest: &mut Guest, deployment: &Deployment, path: &str) -> (String, Released) {
    guest.request.resource = Some(path.parse().unwrap());
    let answer = guest.attest(deployment).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    let answer: TokenResponse = serde_json::from_slice(&answer.body).unwrap();
    (answer.token, answer.resource.unwrap())
}

/// The kind of a refusal, and its ticket.
fn refused(released: Released) -> (ErrorKind, String) {
    let Released::Refused { status, error } = released else {
        panic!("a secret came");
    };
    let kind = error.kind().unwrap();
    assert_eq!(status, kind.status());
    (kind, error.ticket.unwrap())
}

fn record(deployment: &Deployment) -> Vec<Value> {
    let told = deployment.own(&["record", "export"]);
    let entry = |line| serde_json::from_str(line).unwrap();
    told.lines().map(entry).collect()
}

#[tokio::test]
async fn a_secret_comes_with_the_token_and_both_are_on_the_record_in_order() {
    let deployment = demo();
    let mut guest = Guest::challenged(&deployment, Some(INIT_DATA)).await;
    let (token, released) = with_token(&mut guest, &deployment, PATH).await;
    let Released::Sealed(jwe) = released else {
        panic!("{released:?}");
    };
    let secret = guest.key.open(&jwe).ok().unwrap();
    assert_eq!(secret.expose(), SECRET.as_bytes());
    let later = fetch(&deployment, &token, PATH).await;
    assert_eq!(later.status, StatusCode::OK, "the token is as good as any");

    let all = record(&deployment);
    let of = |kind: &str| {
        let at = all.iter().position(|entry| entry["kind"] == kind);
        &all[at.unwrap()]
    };
    let (attest, release) = (of("attest"), of("release"));
    assert_eq!(release["attestation"], attest["ticket"]);
    assert_eq!(release["resource"], PATH);
    assert!(release["id"].as_i64() > attest["id"].as_i64());
    let log = deployment.log();
    for secret in [SECRET, &token, &jwe.ciphertext] {
        assert!(!log.contains(secret), "the log holds {secret}");
    }
}

#[tokio::test]
async fn what_is_refused_beside_a_token_is_explained_as_any_refusal() {
    let deployment = demo();
    let mut guest = Guest::challenged(&deployment, Some(INIT_DATA)).await;
    let (_, absent) = with_token(&mut guest, &deployment, "default/key/absent").await;
    let (kind, ticket) = refused(absent);
    assert_eq!(kind, ErrorKind::ResourceNotFound);
    let told = deployment.own(&["explain", &ticket]);
    assert!(told.contains("default/key/absent"), "{told}");

    // Without init-data it is attested, and the policy refuses: also to say what there is.
    for path in [PATH, "default/key/absent"] {
        let mut other = Guest::challenged(&deployment, None).await;
        let (token, denied) = with_token(&mut other, &deployment, path).await;
        let (kind, ticket) = refused(denied);
        assert_eq!(kind, ErrorKind::PolicyDeny);
        let told = deployment.own(&["explain", &ticket]);
        assert!(told.contains("init_data"), "{told}");
        let alone = fetch(&deployment, &token, path).await;
        assert_eq!(alone.refusal().0, ErrorKind::PolicyDeny);
    }
}

#[tokio::test]
async fn evidence_that_is_refused_brings_nothing_and_a_path_that_is_none_is_named() {
    let deployment = demo();
    let mut guest = Guest::challenged(&deployment, Some(INIT_DATA)).await;
    guest.request.resource = Some(PATH.parse().unwrap());
    guest.request.tee_evidence.primary_evidence["report_data"] = "AAAA".into();
    let answer = guest.attest(&deployment).await;
    assert_eq!(answer.refusal().0, ErrorKind::AttestationError);

    let guest = Guest::challenged(&deployment, Some(INIT_DATA)).await;
    let mut request = serde_json::to_value(&guest.request).unwrap();
    request["cloister-resource"] = "../etc/passwd".into();
    let headers = [("cookie", guest.cookie.as_str())];
    let body = request.to_string();
    let answer = deployment.ask(http::Method::POST, "attest", &headers, body);
    let (kind, error) = answer.await.refusal();
    assert_eq!(kind, ErrorKind::InvalidRequest, "{}", error.detail);
}
