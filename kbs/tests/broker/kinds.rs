//! Kinds of evidence from end to end: simulated SEV-SNP, devices, and which policy appraises.

use crate::deployment;
use crate::platform;

use base64::{Engine, prelude::BASE64_STANDARD};
use deployment::{Deployment, Guest, SECRET, fetch};
use evidence::eventlog::{AaelEvent, LOG_END, entry, header};
use http::{Method, StatusCode};
use kbs_protocol::{EVENT_LOG, ErrorKind, Jwe, device_report_data};
use platform::{Platform, broker};
use serde_json::{Value, json};

const PATH: &str = "default/key/1";
const FOR_SIMULATED: &str = r#"package policy
default allow := false
allow if {
	some part in input.submods
	part["ear.veraison.annotated-evidence"]["sim-snp"].measurement == "MEASUREMENT"
}
"#;

fn with_secret(also: &[&str]) -> Deployment {
    let deployment = broker(also);
    let secret = deployment.write("secret", SECRET);
    deployment.own(&["resource", "set", PATH, "--file", &secret]);
    deployment
}

fn claims(token: &str) -> Value {
    jsonwebtoken::dangerous::insecure_decode::<Value>(token)
        .unwrap()
        .claims
}

#[tokio::test]
async fn a_simulated_launch_gets_the_secret_only_where_a_policy_asks_for_it_by_name() {
    let deployment = with_secret(&[]);
    let platform = Platform::new();
    let guest = platform.guest(&deployment, None).await;
    let token = guest.token(&deployment).await;
    let cpu = &claims(&token)["submods"]["cpu0"];
    let evidence = &cpu["ear.veraison.annotated-evidence"]["sim-snp"];
    assert_eq!(evidence["measurement"], "ab".repeat(48));
    assert_eq!(cpu["ear.trustworthiness-vector"]["hardware"], 97);
    assert_eq!(cpu["ear.appraisal-policy-id"], "default");
    let (kind, _) = fetch(&deployment, &token, PATH).await.refusal();
    assert_eq!(kind, ErrorKind::PolicyDeny);

    let policy = FOR_SIMULATED.replace("MEASUREMENT", &"ab".repeat(48));
    let policy = deployment.write("policy.rego", policy);
    deployment.own(&["policy", "set", "--file", &policy]);
    let answer = fetch(&deployment, &token, PATH).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
    let jwe: Jwe = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        guest.key.open(&jwe).ok().unwrap().expose(),
        SECRET.as_bytes()
    );
}

#[tokio::test]
async fn a_simulated_proof_passes_for_no_hardware_and_not_where_it_is_not_accepted() {
    let deployment = with_secret(&["snp"]);
    let platform = Platform::new();
    let mut guest = Guest::asked(&deployment, "snp", None).await;
    platform.prove(&mut guest.request);
    let (kind, error) = guest.attest(&deployment).await.refusal();
    assert_eq!(kind, ErrorKind::AttestationError);
    let told = deployment.own(&["explain", &error.ticket.unwrap()]);
    assert!(told.contains("signed by the ASK"), "{told}");

    let production = Deployment::start(&["snp"]);
    let body = r#"{"version":"0.4.0","tee":"sim-snp","extra-params":{}}"#;
    let answer = production.ask(Method::POST, "auth", &[], body).await;
    assert_eq!(answer.refusal().0, ErrorKind::TeeNotAccepted);
}

#[tokio::test]
async fn a_device_is_a_part_of_the_token_and_binds_the_same_challenge() {
    let deployment = with_secret(&[]);
    let platform = Platform::new();
    let mut guest = Guest::asked(&deployment, "sim-snp", None).await;
    let runtime = &guest.request.runtime_data;
    let bound = device_report_data(&runtime.nonce, &runtime.tee_pubkey);
    let device = |bound: &[u8]| {
        let evidence = json!({"svn": "1", "report_data": BASE64_STANDARD.encode(bound)});
        json!({ "sampledevice": evidence }).to_string()
    };
    guest.request.tee_evidence.additional_evidence = device(&bound);
    platform.prove(&mut guest.request);
    let token = guest.token(&deployment).await;
    let parts = &claims(&token)["submods"];
    let annotated = &parts["gpu0"]["ear.veraison.annotated-evidence"];
    assert_eq!(annotated["sampledevice"], json!({"svn": "1"}));
    assert_ne!(parts["gpu0"]["ear.status"], "affirming");
    let told = deployment.own(&["record", "list", "--kind", "attest"]);
    assert!(told.contains(r#""devices":{"gpu":0}"#), "{told}");

    // Dropped on the way, the CPU's evidence no longer fits.
    guest.request.tee_evidence.additional_evidence.clear();
    let (kind, _) = guest.attest(&deployment).await.refusal();
    assert_eq!(kind, ErrorKind::AttestationError);

    guest.request.tee_evidence.additional_evidence = device(&[1; 48]);
    platform.prove(&mut guest.request);
    let (kind, _) = guest.attest(&deployment).await.refusal();
    assert_eq!(kind, ErrorKind::AttestationError);
}

#[tokio::test]
async fn a_log_without_registers_is_a_claim_that_the_report_answers_for() {
    let deployment = with_secret(&[]);
    let platform = Platform::new();
    let log = |digest: &str| {
        let content = format!(r#"{{"image":"a", "digest":"{digest}"}}"#);
        let event = AaelEvent {
            domain: "github.com/confidential-containers",
            operation: "PullImage",
            content: &content,
        };
        let (entry, _) = entry(4, &event.data().unwrap());
        let log = [&header()[..], &entry, &LOG_END].concat();
        json!({ EVENT_LOG: BASE64_STANDARD.encode(log) }).to_string()
    };
    let mut guest = Guest::asked(&deployment, "sim-snp", None).await;
    guest.request.tee_evidence.additional_evidence = log("sha256:00");
    platform.prove(&mut guest.request);
    let token = guest.token(&deployment).await;
    let cpu = &claims(&token)["submods"]["cpu0"];
    let said = &cpu["ear.veraison.annotated-evidence"]["sim-snp"];
    let event = &said["uefi_event_logs"][0];
    assert_eq!(event["details"]["data"]["content"]["digest"], "sha256:00");
    assert_eq!(said["event_log_bound_by"], "report_data");

    // Another log, or none, is not what the report is over.
    for other in [log("sha256:01"), String::new()] {
        guest.request.tee_evidence.additional_evidence = other;
        let (kind, _) = guest.attest(&deployment).await.refusal();
        assert_eq!(kind, ErrorKind::AttestationError);
    }
    // One that contradicts itself is refused, whatever the report is over.
    guest.request.tee_evidence.additional_evidence = json!({ EVENT_LOG: "AAAA" }).to_string();
    platform.prove(&mut guest.request);
    let (kind, error) = guest.attest(&deployment).await.refusal();
    assert_eq!(kind, ErrorKind::AttestationError);
    let told = deployment.own(&["explain", &error.ticket.unwrap()]);
    assert!(told.contains("additional_evidence"), "{told}");
}

#[tokio::test]
async fn every_patch_of_the_protocol_is_spoken_and_a_newer_minor_learns_what_is() {
    let deployment = broker(&[]);
    let ask = |version: &str| {
        let body = json!({"version": version, "tee": "sim-snp", "extra-params": ""}).to_string();
        let deployment = &deployment;
        async move { deployment.ask(Method::POST, "auth", &[], body).await }
    };
    for version in ["0.4.0", "0.4.1", "0.4.17"] {
        assert_eq!(ask(version).await.status, StatusCode::OK, "{version}");
    }
    for version in ["0.5.0", "0.3.9", "1.0.0", "0.4", "0.4.0.0", "0.4.x", ""] {
        let (kind, error) = ask(version).await.refusal();
        assert_eq!(kind, ErrorKind::ProtocolVersion, "{version}");
        assert!(error.detail.contains("0.4.0"), "{}", error.detail);
    }
}
