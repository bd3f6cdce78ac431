//! Faults of the request on its way: the launch was good, and something was changed or lost.

use base64::{Engine, prelude::BASE64_STANDARD};
use evidence::snp::SnpEvidence;
use kbs_protocol::{AttestRequest, KeyKind, TeeKeyPair, TeePubKey};
use serde_json::{Value, json};

use super::{Case, Fault, case};
use crate::platform::{OTHER_ROOT, ROOT};

fn message(
    name: &'static str,
    fault: fn(&mut AttestRequest),
    claim: &'static str,
    told: &'static str,
) -> Case {
    case(name, Fault::Message(fault), claim, told)
}

fn evidence(request: &mut AttestRequest) -> &mut Value {
    &mut request.tee_evidence.primary_evidence
}

/// Changes one byte of the report.
fn byte(request: &mut AttestRequest, at: usize, value: u8) {
    let evidence = evidence(request);
    let sent: SnpEvidence = serde_json::from_value(evidence.clone()).unwrap();
    let mut bytes = *sent.bytes();
    bytes[at] = value;
    evidence["attestation_report"] = BASE64_STANDARD.encode(bytes).into();
}

fn certificate(request: &mut AttestRequest) -> &mut Value {
    &mut evidence(request)["cert_chain"][0]
}

fn der(bytes: &[u8]) -> Value {
    json!(bytes)
}

pub(crate) fn cases() -> Vec<Case> {
    [
        report(),
        certificates(),
        form(),
        bound(),
        init_data(),
        devices(),
        keys(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Offsets are those of the report (AMD 56860).
fn report() -> Vec<Case> {
    const CLAIM: &str = "signature";
    const TOLD: &str = "signature is wrong";
    vec![
        message(
            "the measurement changed on its way",
            |r| byte(r, 0x90, 1),
            CLAIM,
            TOLD,
        ),
        message(
            "the policy changed on its way",
            |r| byte(r, 0x08, 1),
            CLAIM,
            TOLD,
        ),
        message(
            "the guest's version changed on its way",
            |r| byte(r, 0x04, 9),
            CLAIM,
            TOLD,
        ),
        message(
            "the image id changed on its way",
            |r| byte(r, 0x20, 9),
            CLAIM,
            TOLD,
        ),
        message(
            "the id key changed on its way",
            |r| byte(r, 0xe0, 9),
            CLAIM,
            TOLD,
        ),
        message(
            "the signature's r changed",
            |r| byte(r, 0x2a0, 1),
            CLAIM,
            TOLD,
        ),
        message(
            "the signature's s changed",
            |r| byte(r, 0x2e8, 1),
            CLAIM,
            TOLD,
        ),
        message(
            "another signature algorithm",
            |r| byte(r, 0x34, 2),
            CLAIM,
            "algorithm is 2",
        ),
    ]
}

fn certificates() -> Vec<Case> {
    vec![
        message(
            "no certificates",
            |r| evidence(r)["cert_chain"] = json!([]),
            "vek",
            "Genoa",
        ),
        message("the certificate twice", twice, "vek", "more than one"),
        message(
            "no certificate at all",
            |r| certificate(r)["data"] = der(b"hello"),
            "certificates",
            "not X.509",
        ),
        message(
            "a certificate cut short",
            |r| drop(certificate(r)["data"].as_array_mut().unwrap().pop()),
            "certificates",
            "not X.509",
        ),
        message(
            "a certificate with a tail",
            |r| {
                certificate(r)["data"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!(0))
            },
            "certificates",
            "something follows",
        ),
        message(
            "an issuer for the chip's key",
            |r| certificate(r)["data"] = der(ROOT.certificates()[1]),
            "certificates",
            "SEV-VCEK",
        ),
        message(
            "a certificate's signature changed",
            |r| {
                *certificate(r)["data"]
                    .as_array_mut()
                    .unwrap()
                    .last_mut()
                    .unwrap() = json!(1)
            },
            "chain",
            "ASK",
        ),
        message("a certificate under another root", foreign, "chain", "ASK"),
        message(
            "an issuer of another root beside it",
            foreign_issuer,
            "certificates",
            "ARK",
        ),
        message(
            "a label of the other kind",
            |r| certificate(r)["cert_type"] = json!("VLEK"),
            "certificates",
            "another kind",
        ),
        message(
            "a label that is unknown",
            |r| certificate(r)["cert_type"] = json!("VCAK"),
            "primary_evidence",
            "VCAK",
        ),
    ]
}

fn twice(request: &mut AttestRequest) {
    let one = certificate(request).clone();
    evidence(request)["cert_chain"]
        .as_array_mut()
        .unwrap()
        .push(one);
}

fn foreign(request: &mut AttestRequest) {
    let platform = crate::platform::Platform::new();
    let key = OTHER_ROOT.chip(&platform.chip).unwrap();
    let evidence = key.evidence(platform.report).unwrap();
    certificate(request)["data"] = der(&evidence.certificates()[0].data);
}

fn foreign_issuer(request: &mut AttestRequest) {
    let entry = json!({"cert_type": "ARK", "data": OTHER_ROOT.certificates()[0]});
    evidence(request)["cert_chain"]
        .as_array_mut()
        .unwrap()
        .push(entry);
}

fn form() -> Vec<Case> {
    const CLAIM: &str = "primary_evidence";
    vec![
        message("no evidence", |r| *evidence(r) = Value::Null, CLAIM, "null"),
        message(
            "evidence as text",
            |r| *evidence(r) = json!("evidence"),
            CLAIM,
            "string",
        ),
        message(
            "evidence of another kind",
            |r| *evidence(r) = json!({"svn": "1", "report_data": ""}),
            CLAIM,
            "report_data",
        ),
        message(
            "a member that is unknown",
            |r| evidence(r)["extra"] = json!(1),
            CLAIM,
            "extra",
        ),
        message(
            "no report",
            |r| {
                drop(
                    evidence(r)
                        .as_object_mut()
                        .unwrap()
                        .remove("attestation_report"),
                )
            },
            CLAIM,
            "attestation_report",
        ),
        message(
            "a report cut short",
            |r| evidence(r)["attestation_report"] = json!(BASE64_STANDARD.encode([3; 1183])),
            CLAIM,
            "1183",
        ),
        message("a report of version 9", |r| byte(r, 0, 9), CLAIM, "9"),
    ]
}

fn bound() -> Vec<Case> {
    vec![
        message(
            "another nonce",
            |r| r.runtime_data.nonce = BASE64_STANDARD.encode([1; 32]),
            "nonce",
            "AQEB",
        ),
        message("no nonce", |r| r.runtime_data.nonce.clear(), "nonce", ""),
        message("another key", another_key, "report_data", ""),
        message(
            "a key with its halves exchanged",
            exchanged,
            "InvalidRequest",
            "tee-pubkey",
        ),
    ]
}

fn another_key(request: &mut AttestRequest) {
    request.runtime_data.tee_pubkey = TeeKeyPair::generate(KeyKind::P256).unwrap().public();
}

fn exchanged(request: &mut AttestRequest) {
    if let TeePubKey::Ec { x, y, .. } = &mut request.runtime_data.tee_pubkey {
        std::mem::swap(x, y);
    }
}

fn init_data() -> Vec<Case> {
    vec![
        message(
            "init-data changed on its way",
            |r| body(r).push('\n'),
            "init_data",
            "",
        ),
        message(
            "init-data under another algorithm",
            |r| *body(r) = body(r).replace("sha256", "sha384"),
            "init_data",
            "",
        ),
        message(
            "init-data in another form",
            |r| r.init_data.as_mut().unwrap().format = "json".to_owned(),
            "InvalidRequest",
            "toml",
        ),
        message(
            "init-data that is no TOML",
            |r| *body(r) = "}".to_owned(),
            "InvalidRequest",
            "init-data",
        ),
        message(
            "init-data of another version",
            |r| *body(r) = body(r).replace("0.1.0", "9.1.0"),
            "InvalidRequest",
            "version",
        ),
        message(
            "init-data with an unknown algorithm",
            |r| *body(r) = body(r).replace("sha256", "md5"),
            "InvalidRequest",
            "md5",
        ),
    ]
}

fn body(request: &mut AttestRequest) -> &mut String {
    &mut request.init_data.as_mut().unwrap().body
}

fn devices() -> Vec<Case> {
    fn set(request: &mut AttestRequest, text: &str) {
        request.tee_evidence.additional_evidence = text.to_owned();
    }
    const CLAIM: &str = "additional_evidence";
    vec![
        message(
            "a device without a verifier",
            |r| set(r, r#"{"nvidia":{}}"#),
            CLAIM,
            "nvidia",
        ),
        message("devices that are no map", |r| set(r, "[1]"), CLAIM, ""),
        message("devices that are no JSON", |r| set(r, "{"), CLAIM, ""),
        message(
            "a device that the CPU does not bind",
            |r| set(r, r#"{"sampledevice":{"svn":"1","report_data":""}}"#),
            "report_data",
            "",
        ),
    ]
}

fn keys() -> Vec<Case> {
    fn ec(request: &mut AttestRequest, change: fn(&mut String, &mut String)) {
        if let TeePubKey::Ec { crv, alg, .. } = &mut request.runtime_data.tee_pubkey {
            change(crv, alg);
        }
    }
    const CLAIM: &str = "InvalidRequest";
    const TOLD: &str = "tee-pubkey";
    vec![
        message(
            "a curve that is unknown",
            |r| ec(r, |crv, _| "P-999".clone_into(crv)),
            CLAIM,
            TOLD,
        ),
        message(
            "a curve of another size",
            |r| ec(r, |crv, _| "P-521".clone_into(crv)),
            CLAIM,
            TOLD,
        ),
        message(
            "a key algorithm that is unknown",
            |r| ec(r, |_, alg| "ECDH-ES".clone_into(alg)),
            CLAIM,
            TOLD,
        ),
    ]
}
