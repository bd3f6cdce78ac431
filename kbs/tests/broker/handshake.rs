//! The whole handshake against a real broker over TLS, honest and not.

use crate::deployment;

use std::time::Duration;

use deployment::{Deployment, Guest, SECRET, digest_of, fetch};
use http::{Method, StatusCode};
use kbs_protocol::{ErrorKind, Jwe, KeyKind, TeeKeyPair};
use serde_json::{Value, json};

pub(crate) const INIT_DATA: &str = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"policy.rego\" = \"package agent_policy\"\n\"aa.toml\" = \"[token_configs.kbs]\\nurl = 'https://broker'\"\n";
pub(crate) const PATH: &str = "default/key/1";

/// A broker that releases to the sample guest with [`INIT_DATA`] and has one secret.
pub(crate) fn demo() -> Deployment {
    let deployment = Deployment::start(&["sample"]);
    let secret = deployment.write("secret", SECRET);
    deployment.own(&["resource", "set", PATH, "--file", &secret]);
    let digest = digest_of(INIT_DATA);
    deployment.own(&[
        "policy",
        "pin",
        "--init-data-digest",
        &digest,
        "--tee",
        "sample",
    ]);
    deployment
}

#[tokio::test]
async fn a_guest_with_the_pinned_init_data_gets_the_secret_and_logs_hold_none() {
    let deployment = demo();
    let guest = Guest::challenged(&deployment, Some(INIT_DATA)).await;
    let token = guest.token(&deployment).await;
    let answer = fetch(&deployment, &token, PATH).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    let jwe: Jwe = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        guest.key.open(&jwe).ok().unwrap().expose(),
        SECRET.as_bytes()
    );

    let other = TeeKeyPair::generate(KeyKind::P256).unwrap();
    assert!(other.open(&jwe).is_err());

    let log = deployment.log();
    let admin = deployment.admin_token();
    for secret in [SECRET, &token, &guest.cookie, &jwe.ciphertext, &admin] {
        assert!(!log.contains(secret), "the log holds {secret}");
    }
    assert!(log.contains("\"route\":\"/kbs/v0/attest\""), "{log}");
}

#[tokio::test]
async fn the_cookie_alone_carries_a_guest_from_auth_to_the_secret() {
    let deployment = demo();
    let guest = Guest::challenged(&deployment, Some(INIT_DATA)).await;
    let attested = guest.attest(&deployment).await;
    let cookie = attested.cookie();
    let headers = [("cookie", cookie.as_str())];
    let answer = deployment
        .ask(Method::GET, "resource/default/key/1", &headers, "")
        .await;
    let jwe: Jwe = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        guest.key.open(&jwe).ok().unwrap().expose(),
        SECRET.as_bytes()
    );
}

#[tokio::test]
async fn the_token_has_its_claims_where_peers_look_and_verifies_by_the_published_key() {
    let deployment = demo();
    let guest = Guest::challenged(&deployment, Some(INIT_DATA)).await;
    let token = guest.token(&deployment).await;
    let jwks = deployment
        .ask(Method::GET, "/.well-known/jwks.json", &[], "")
        .await
        .json();
    let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(jwks["keys"][0].clone()).unwrap();
    let header = jsonwebtoken::decode_header(&token).unwrap();
    assert_eq!(header.kid, jwk.common.key_id);
    let rule = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    let key = jsonwebtoken::DecodingKey::from_jwk(&jwk).unwrap();
    let claims = jsonwebtoken::decode::<Value>(&token, &key, &rule)
        .unwrap()
        .claims;
    let cpu = &claims["submods"]["cpu0"];
    assert_eq!(cpu["ear.status"], "contraindicated");
    let evidence = &cpu["ear.veraison.annotated-evidence"];
    assert_eq!(evidence["sample"]["svn"], "1");
    assert_eq!(evidence["init_data"], digest_of(INIT_DATA));
    assert_eq!(
        evidence["init_data_claims"]["aa.toml"]["token_configs"]["kbs"]["url"],
        "https://broker"
    );
    let key = serde_json::to_value(guest.key.public()).unwrap();
    assert_eq!(evidence["runtime_data_claims"]["tee-pubkey"], key);
}

#[tokio::test]
async fn init_data_that_the_launch_did_not_bind_is_no_claim_or_a_refusal() {
    let deployment = demo();
    let mut guest = Guest::challenged(&deployment, Some(INIT_DATA)).await;
    guest
        .request
        .tee_evidence
        .primary_evidence
        .as_object_mut()
        .unwrap()
        .remove("init_data");
    let token = guest.token(&deployment).await;
    let (kind, _) = fetch(&deployment, &token, PATH).await.refusal();
    assert_eq!(kind, ErrorKind::PolicyDeny);

    let mut liar = Guest::challenged(&deployment, Some(INIT_DATA)).await;
    liar.request.init_data.as_mut().unwrap().body.push('\n');
    let (kind, error) = liar.attest(&deployment).await.refusal();
    assert_eq!(kind, ErrorKind::AttestationError);
    let told = deployment.own(&["explain", &error.ticket.unwrap()]);
    assert!(
        told.contains("init_data") && told.contains(&digest_of(INIT_DATA)),
        "{told}"
    );
}

#[tokio::test]
async fn a_denied_guest_learns_a_ticket_and_its_owner_the_cause() {
    let deployment = demo();
    let other = INIT_DATA.replace("package agent_policy", "package agent_policy # changed");
    let guest = Guest::challenged(&deployment, Some(&other)).await;
    let token = guest.token(&deployment).await;
    let answer = fetch(&deployment, &token, PATH).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    let (kind, error) = answer.refusal();
    assert_eq!(kind, ErrorKind::PolicyDeny);
    assert!(!error.detail.contains(&digest_of(INIT_DATA)));
    let ticket = error.ticket.unwrap();

    let told = deployment.own(&["explain", &ticket]);
    for word in [
        "refused at",
        PATH,
        "expected",
        &digest_of(INIT_DATA),
        "found",
        &digest_of(&other),
        "fix",
    ] {
        assert!(told.contains(word), "{word} is not in {told}");
    }
    let told: Value =
        serde_json::from_str(&deployment.own(&["explain", &ticket, "--json"])).unwrap();
    assert_eq!(told["causes"][0]["found"], digest_of(&other));

    let anonymous = deployment
        .ask(Method::GET, &format!("explain/{ticket}"), &[], "")
        .await;
    assert_eq!(anonymous.refusal().0, ErrorKind::AdminAuthAccess);
    let unknown = deployment.owner(&["explain", "nosuchticket"]);
    assert!(!unknown.status.success());
}

#[tokio::test]
async fn answers_to_another_challenge_or_with_another_key_are_refused_with_a_ticket() {
    let deployment = demo();
    let mut nonce = Guest::challenged(&deployment, None).await;
    nonce.request.runtime_data.nonce = "bm9uY2U=".to_owned();
    nonce.prove();
    let mut key = Guest::challenged(&deployment, None).await;
    key.request.runtime_data.tee_pubkey = TeeKeyPair::generate(KeyKind::P256).unwrap().public();
    for (guest, claim) in [(nonce, "nonce"), (key, "report_data")] {
        let (kind, error) = guest.attest(&deployment).await.refusal();
        assert_eq!(kind, ErrorKind::AttestationError);
        assert!(!error.detail.contains(claim), "the guest is told {claim}");
        let told = deployment.own(&["explain", &error.ticket.unwrap()]);
        assert!(told.contains(claim), "{told}");
    }
}

#[tokio::test]
async fn an_answer_sent_again_is_judged_again_and_serves_its_own_key_only() {
    let deployment = Deployment::start(&["sample"]);
    let mut guest = Guest::challenged(&deployment, None).await;
    guest.token(&deployment).await;
    guest.token(&deployment).await;
    let thief = TeeKeyPair::generate(KeyKind::P256).unwrap();
    guest.request.runtime_data.tee_pubkey = thief.public();
    let (kind, _) = guest.attest(&deployment).await.refusal();
    assert_eq!(kind, ErrorKind::AttestationError);
    guest.request.tee_evidence.primary_evidence = json!({});
    let (kind, _) = guest.attest(&deployment).await.refusal();
    assert_eq!(kind, ErrorKind::AttestationError);
}

#[tokio::test]
async fn a_challenge_is_good_for_its_time_and_for_its_broker() {
    let deployment = Deployment::start_with(&["sample"], |config| {
        config.replace("challenge_seconds = 300", "challenge_seconds = 2")
    });
    let late = Guest::challenged(&deployment, None).await;
    tokio::time::sleep(Duration::from_millis(3100)).await;
    let (kind, error) = late.attest(&deployment).await.refusal();
    assert_eq!(kind, ErrorKind::SessionNotFound);
    assert!(error.detail.contains("expired"), "{}", error.detail);

    let other = Deployment::start(&["sample"]);
    let stranger = Guest::challenged(&other, None).await;
    let (kind, _) = stranger.attest(&deployment).await.refusal();
    assert_eq!(kind, ErrorKind::SessionNotFound);

    let mut bare = Guest::challenged(&deployment, None).await;
    bare.cookie = "kbs-session-id=0123".to_owned();
    let (kind, _) = bare.attest(&deployment).await.refusal();
    assert_eq!(kind, ErrorKind::SessionNotFound);
}

#[tokio::test]
async fn an_altered_or_foreign_or_missing_token_releases_nothing() {
    let deployment = demo();
    let guest = Guest::challenged(&deployment, Some(INIT_DATA)).await;
    let token = guest.token(&deployment).await;
    let foreign = Deployment::start(&["sample"]);
    let foreign = Guest::challenged(&foreign, Some(INIT_DATA))
        .await
        .token(&foreign)
        .await;
    let parts: Vec<&str> = token.split('.').collect();
    let (alike, signature) = (parts[1].replacen('Z', "Y", 1), parts[2]);
    for bad in [
        format!("{}.{alike}.{signature}", parts[0]),
        format!("{}.{}.", parts[0], parts[1]),
        foreign,
        "x".to_owned(),
    ] {
        let (kind, _) = fetch(&deployment, &bad, PATH).await.refusal();
        assert_eq!(kind, ErrorKind::TokenVerifierError);
    }
    let none = deployment
        .ask(Method::GET, "resource/default/key/1", &[], "")
        .await;
    assert_eq!(none.refusal().0, ErrorKind::TokenNotFound);
    // Neither does an administrator's token: those are for the owner.
    let admin = deployment.admin_token();
    let (kind, _) = fetch(&deployment, &admin, PATH).await.refusal();
    assert_eq!(kind, ErrorKind::TokenVerifierError);
}

#[tokio::test]
async fn sample_evidence_is_refused_unless_the_configuration_lists_it() {
    let deployment = Deployment::start(&[]);
    for tee in ["sample", "snp", "tdx", "nonsense"] {
        let body = json!({"version": "0.4.0", "tee": tee, "extra-params": ""}).to_string();
        let (kind, error) = deployment
            .ask(Method::POST, "auth", &[], body)
            .await
            .refusal();
        assert_eq!(kind, ErrorKind::TeeNotAccepted);
        assert!(error.detail.contains(tee), "{}", error.detail);
        assert!(error.detail.contains("not configured"), "{}", error.detail);
    }
}

#[tokio::test]
async fn the_default_policy_does_not_release_to_a_sample() {
    let deployment = Deployment::start(&["sample"]);
    let secret = deployment.write("secret", SECRET);
    deployment.own(&["resource", "set", PATH, "--file", &secret]);
    let guest = Guest::challenged(&deployment, None).await;
    let token = guest.token(&deployment).await;
    let (kind, error) = fetch(&deployment, &token, PATH).await.refusal();
    assert_eq!(kind, ErrorKind::PolicyDeny);
    let told = deployment.own(&["explain", &error.ticket.unwrap()]);
    assert!(told.contains("no simulated evidence"), "{told}");
    // Why the status is what it is, and not the status.
    assert!(told.contains("sample.launch_digest"), "{told}");
}

#[tokio::test]
async fn unknown_versions_endpoints_and_bodies_are_named() {
    let deployment = demo();
    let post = async |path: &str, body: String| {
        deployment
            .ask(Method::POST, path, &[], body)
            .await
            .refusal()
    };
    let old = json!({"version": "0.2.0", "tee": "sample", "extra-params": ""}).to_string();
    let (kind, error) = post("auth", old).await;
    assert_eq!(kind, ErrorKind::ProtocolVersion);
    assert!(error.detail.contains("0.2.0") && error.detail.contains("0.4.0"));
    assert_eq!(
        post("auth", "{".to_owned()).await.0,
        ErrorKind::InvalidRequest
    );
    assert_eq!(
        post("auth", "x".repeat(17 << 10)).await.0,
        ErrorKind::PayloadTooLarge
    );
    let large = "x".repeat((4 << 20) + 1);
    let guest = Guest::challenged(&deployment, None).await;
    let headers = [("cookie", guest.cookie.as_str())];
    let answer = deployment
        .ask(Method::POST, "attest", &headers, large)
        .await;
    assert_eq!(answer.refusal().0, ErrorKind::PayloadTooLarge);
    for (method, path, kind) in [
        (Method::GET, "auth", ErrorKind::MethodNotAllowed),
        (
            Method::GET,
            "nebula-ca/credential",
            ErrorKind::PluginNotFound,
        ),
        (
            Method::GET,
            "resource/one/two",
            ErrorKind::InvalidRequestPath,
        ),
        (Method::GET, "/elsewhere", ErrorKind::InvalidRequestPath),
    ] {
        let answer = deployment.ask(method, path, &[], "").await;
        assert_eq!(answer.refusal().0, kind, "{path}");
    }
    let health = deployment.ask(Method::GET, "/healthz", &[], "").await;
    assert_eq!((health.status, health.body.len()), (StatusCode::OK, 0));
}
