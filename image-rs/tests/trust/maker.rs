//! Those who sign: keys, an authority as Fulcio is, logs as Rekor and a certificate log are.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image_rs::Digest;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, PublicKeyData as _, SanType, SigningKey as _,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// When the tests look, in seconds since 1970: 2026-02-01.
pub(crate) const NOW: u64 = 1_769_904_000;
/// When keyless signatures are made: 2026-01-01, an hour after midnight.
pub(crate) const SIGNED_AT: u64 = 1_767_225_600 + 3600;
pub(crate) const ISSUER: &str = "https://accounts.example";
pub(crate) const EMAIL: &str = "dev@team.example";

pub(crate) fn base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

fn hash(parts: &[&[u8]]) -> Vec<u8> {
    Sha256::digest(parts.concat()).to_vec()
}

/// What cosign signs.
pub(crate) fn payload(digest: &Digest, name: &str) -> Vec<u8> {
    simple_payload("cosign container image signature", digest, name)
}

pub(crate) fn simple_payload(kind: &str, digest: &Digest, name: &str) -> Vec<u8> {
    serde_json::to_vec(&json!({
        "critical": {"type": kind, "image": {"docker-manifest-digest": digest},
                     "identity": {"docker-reference": name}},
        "optional": null,
    }))
    .unwrap()
}

/// An authority with a root and an intermediate.
pub(crate) struct Fulcio {
    root: String,
    intermediate: (String, Issuer<'static, KeyPair>),
}

/// A certificate with its key.
pub(crate) struct Identity {
    pub(crate) pem: String,
    pub(crate) der: Vec<u8>,
    pub(crate) key: KeyPair,
}

/// What a certificate says.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) subject: SanType,
    pub(crate) issuer: &'static str,
    pub(crate) older_issuer: &'static str,
    pub(crate) usage: ExtendedKeyUsagePurpose,
    pub(crate) extension: Option<Vec<u8>>,
}

impl Default for Login {
    fn default() -> Self {
        Self {
            subject: SanType::Rfc822Name(EMAIL.try_into().unwrap()),
            issuer: ISSUER,
            older_issuer: ISSUER,
            usage: ExtendedKeyUsagePurpose::CodeSigning,
            extension: None,
        }
    }
}

impl Fulcio {
    pub(crate) fn new() -> Self {
        let (key, params) = (KeyPair::generate().unwrap(), authority("root"));
        let root = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let (key, params) = (KeyPair::generate().unwrap(), authority("intermediate"));
        let intermediate = params.signed_by(&key, &issuer).unwrap();
        Self {
            root: root.pem(),
            intermediate: (intermediate.pem(), Issuer::new(params, key)),
        }
    }

    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    pub(crate) fn chain(&self) -> String {
        format!("{}{}", self.intermediate.0, self.root)
    }

    pub(crate) fn intermediate_der(&self) -> Vec<u8> {
        pem_der(&self.intermediate.0)
    }

    /// A certificate of ten minutes around [`SIGNED_AT`], in a certificate log if there is one.
    pub(crate) fn issue(&self, login: &Login, log: Option<&Log>) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = certificate(login);
        if let Some(log) = log {
            let before = params.signed_by(&key, &self.intermediate.1).unwrap();
            let issuer = self.intermediate.1.key().subject_public_key_info();
            let list = log.timestamps(tbs(before.der()), &issuer);
            let oid = [1, 3, 6, 1, 4, 1, 11129, 2, 4, 2];
            params.custom_extensions.push(extension(&oid, list));
        }
        let certificate = params.signed_by(&key, &self.intermediate.1).unwrap();
        Identity {
            pem: certificate.pem(),
            der: certificate.der().to_vec(),
            key,
        }
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2035, 1, 1);
    params
}

fn certificate(login: &Login) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.serial_number = Some(7_u64.into());
    let midnight = rcgen::date_time_ymd(2026, 1, 1);
    params.not_before = midnight + Duration::from_secs(3600 - 60);
    params.not_after = midnight + Duration::from_secs(3600 + 540);
    params.subject_alt_names = vec![login.subject.clone()];
    params.extended_key_usages = vec![login.usage.clone()];
    let issuer = |last| [1, 3, 6, 1, 4, 1, 57264, 1, last];
    params.custom_extensions = vec![
        extension(&issuer(1), login.older_issuer.as_bytes().to_vec()),
        extension(&issuer(8), string(0x0c, login.issuer.as_bytes())),
    ];
    if let Some(bytes) = &login.extension {
        params
            .custom_extensions
            .push(extension(&[1, 2, 3], bytes.clone()));
    }
    params
}

fn extension(oid: &[u64], content: Vec<u8>) -> CustomExtension {
    CustomExtension::from_oid_content(oid, content)
}

fn string(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap();
    assert!(length < 128);
    [&[tag, length], bytes].concat()
}

/// The `TBSCertificate` in a certificate.
fn tbs(certificate: &[u8]) -> &[u8] {
    let head = |bytes: &[u8]| match bytes[1] {
        0x82 => (4, 4 + usize::from(bytes[2]) * 256 + usize::from(bytes[3])),
        0x81 => (3, 3 + usize::from(bytes[2])),
        length => (2, 2 + usize::from(length)),
    };
    let inside = &certificate[head(certificate).0..];
    &inside[..head(inside).1]
}

pub(crate) fn pem_der(pem: &str) -> Vec<u8> {
    let lines: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    STANDARD.decode(lines).unwrap()
}

/// A log.
pub(crate) struct Log {
    pub(crate) key: KeyPair,
}

/// An entry of a log with its proofs, each of which a test can spoil.
#[derive(Clone)]
pub(crate) struct Logged {
    pub(crate) body: Value,
    pub(crate) time: u64,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            key: KeyPair::generate().unwrap(),
        }
    }

    pub(crate) fn pem(&self) -> String {
        self.key.public_key_pem()
    }

    fn id(&self) -> Vec<u8> {
        hash(&[&self.key.subject_public_key_info()])
    }

    fn promise(&self, logged: &Logged) -> (String, Vec<u8>) {
        let body = base64(serde_json::to_vec(&logged.body).unwrap());
        let text = format!(
            r#"{{"body":"{body}","integratedTime":{},"logID":"{}","logIndex":41}}"#,
            logged.time,
            hex::encode(self.id())
        );
        let signature = self.key.sign(text.as_bytes()).unwrap();
        (text, signature)
    }

    /// As cosign annotates it.
    pub(crate) fn annotation(&self, logged: &Logged) -> Value {
        let (text, signature) = self.promise(logged);
        let payload: Value = serde_json::from_str(&text).unwrap();
        json!({"SignedEntryTimestamp": base64(signature), "Payload": payload})
    }

    /// As a bundle has it, second of three leaves of the log's tree.
    pub(crate) fn entry(&self, logged: &Logged) -> Value {
        let body = serde_json::to_vec(&logged.body).unwrap();
        let leaf = |bytes: &[u8]| hash(&[&[0], bytes]);
        let (first, own, last) = (leaf(b"first"), leaf(&body), leaf(b"last"));
        let root = hash(&[&[1], &hash(&[&[1], &first, &own]), &last]);
        let note = format!("log.example - 7\n3\n{}\n", base64(&root));
        let id = self.id();
        let signature = [&id[..4], &self.key.sign(note.as_bytes()).unwrap()].concat();
        let checkpoint = format!("{note}\n\u{2014} log.example {}\n", base64(signature));
        json!({
            "logIndex": "41", "logId": {"keyId": base64(id)},
            "kindVersion": {"kind": logged.body["kind"], "version": logged.body["apiVersion"]},
            "integratedTime": logged.time.to_string(),
            "inclusionPromise": {"signedEntryTimestamp": base64(self.promise(logged).1)},
            "inclusionProof": {"logIndex": "1", "rootHash": base64(root), "treeSize": "3",
                "hashes": [base64(first), base64(last)], "checkpoint": {"envelope": checkpoint}},
            "canonicalizedBody": base64(body),
        })
    }

    /// A list of one signed certificate timestamp, in its `OCTET STRING`.
    fn timestamps(&self, tbs: &[u8], issuer_key: &[u8]) -> Vec<u8> {
        let time = 1_767_225_600_000_u64.to_be_bytes();
        let length = u32::try_from(tbs.len()).unwrap().to_be_bytes();
        let issuer = hash(&[issuer_key]);
        let parts: [&[u8]; 7] = [&[0, 0], &time, &[0, 1], &issuer, &length[1..], tbs, &[0, 0]];
        let signature = self.key.sign(&parts.concat()).unwrap();
        let vector = |bytes: &[u8]| {
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            [&length, bytes].concat()
        };
        let parts: [&[u8]; 6] = [
            &[0],
            &self.id(),
            &time,
            &[0, 0],
            &[4, 3],
            &vector(&signature),
        ];
        string(4, &vector(&vector(&parts.concat())))
    }
}

/// Rekor's entry for a signature over bytes.
pub(crate) fn hashedrekord(message: &[u8], signature: &[u8], author_pem: &str) -> Logged {
    let body = json!({
        "apiVersion": "0.0.1", "kind": "hashedrekord",
        "spec": {"data": {"hash": {"algorithm": "sha256", "value": hex::encode(hash(&[message]))}},
                 "signature": {"content": base64(signature), "publicKey": {"content": base64(author_pem)}}},
    });
    Logged {
        body,
        time: SIGNED_AT,
    }
}

/// Rekor's entry for a signed envelope.
pub(crate) fn dsse(payload: &[u8], signature: &[u8], author_pem: &str) -> Logged {
    let body = json!({
        "apiVersion": "0.0.1", "kind": "dsse",
        "spec": {"envelopeHash": {"algorithm": "sha256", "value": "00"},
                 "payloadHash": {"algorithm": "sha256", "value": hex::encode(hash(&[payload]))},
                 "signatures": [{"signature": base64(signature), "verifier": base64(author_pem)}]},
    });
    Logged {
        body,
        time: SIGNED_AT,
    }
}

/// The older entry for a signed envelope.
pub(crate) fn intoto(payload: &[u8], signature: &[u8], author_pem: &str) -> Logged {
    let body = json!({
        "apiVersion": "0.0.2", "kind": "intoto",
        "spec": {"content": {
            "envelope": {"payloadType": "application/vnd.in-toto+json", "signatures": [
                {"sig": base64(base64(signature)), "publicKey": base64(author_pem)}]},
            "hash": {"algorithm": "sha256", "value": "00"},
            "payloadHash": {"algorithm": "sha256", "value": hex::encode(hash(&[payload]))}}},
    });
    Logged {
        body,
        time: SIGNED_AT,
    }
}
