//! Sigstore bundles, version 0.3: one JSON document with the signature and all that is needed to verify it offline.
//!
//! What is signed is an in-toto statement in a DSSE envelope, as cosign 3 writes it, or the manifest itself. The JSON is
//! protobuf's: numbers of 64 bits are text.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::certificate::Chain;
use super::document::Documents;
use super::refusal::Reason;
use super::rekor::{Entry, Proof};
use super::sigstore::{Material, SigstoreSigned};
use crate::digest::Digest;
use crate::policy::Identity;
use crate::reference::Reference;

/// The media type of a bundle, and the type of an artifact that holds one.
pub(super) const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// How version 0.3 was named at first.
const BUNDLE_TYPE_OLD: &str = "application/vnd.dev.sigstore.bundle+json;version=0.3";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const STATEMENTS: [&str; 2] = [
    "https://in-toto.io/Statement/v1",
    "https://in-toto.io/Statement/v0.1",
];
/// The only predicate that signs an image. Any other says something about it: how it was built, or what is wrong with
/// it; and that somebody said it does not mean that they want it to run.
const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
/// Cap on the entries of the log in a bundle.
const ENTRIES_MAX: usize = 8;
/// Cap on the subjects of a statement.
const SUBJECTS_MAX: usize = 64;
const FORMAT: &str = "the bundle";

/// Bytes in base64.
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

/// A number of 64 bits, as text or as a number.
struct Number(u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self(number)),
            Either::Text(text) => text.parse().map(Self).map_err(D::Error::custom),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Verification,
    dsse_envelope: Option<Envelope>,
    message_signature: Option<MessageSignature>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Verification {
    certificate: Option<Certificate>,
    x509_certificate_chain: Option<Certificates>,
    #[serde(rename = "publicKey")]
    _public_key: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    tlog_entries: Vec<LogEntry>,
    #[serde(rename = "timestampVerificationData")]
    _timestamps: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Certificate {
    raw_bytes: Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Certificates {
    certificates: Vec<Certificate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LogEntry {
    log_index: Number,
    log_id: LogId,
    #[serde(rename = "kindVersion")]
    _kind_version: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    integrated_time: Option<Number>,
    inclusion_promise: Option<Promise>,
    inclusion_proof: Option<InclusionProof>,
    canonicalized_body: Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LogId {
    key_id: Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Promise {
    signed_entry_timestamp: Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct InclusionProof {
    #[serde(default)]
    log_index: Option<Number>,
    root_hash: Bytes,
    tree_size: Number,
    #[serde(default)]
    hashes: Vec<Bytes>,
    checkpoint: Checkpoint,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Checkpoint {
    envelope: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope {
    payload: Bytes,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeSignature {
    sig: Bytes,
    #[serde(default, rename = "keyid")]
    _keyid: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MessageSignature {
    message_digest: MessageDigest,
    signature: Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageDigest {
    algorithm: String,
    digest: Bytes,
}

/// Read as in-toto wants it: what is not known says more about the image, and not less.
#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<StatementSubject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
}

#[derive(Deserialize)]
struct StatementSubject {
    #[serde(default)]
    name: String,
    digest: BTreeMap<String, String>,
}

/// Whether this bundle counts for the image.
pub(super) fn judge(
    required: &SigstoreSigned,
    json: &[u8],
    image: &Reference,
    documents: &Documents,
    now: u64,
) -> Result<(), Reason> {
    let bundle: Bundle =
        serde_json::from_slice(json).map_err(|error| Reason::format(FORMAT, error))?;
    if ![BUNDLE_TYPE, BUNDLE_TYPE_OLD].contains(&bundle.media_type.as_str()) {
        let found = bundle.media_type;
        return Err(Reason::Unsupported(format!("a bundle of type {found:?}")));
    }
    let chain = chain(&bundle.verification_material);
    let entries = entries(bundle.verification_material.tlog_entries)?;
    match (bundle.dsse_envelope, bundle.message_signature) {
        (Some(envelope), None) => {
            let Envelope {
                payload,
                payload_type,
                signatures,
            } = envelope;
            let [one] = <[EnvelopeSignature; 1]>::try_from(signatures)
                .map_err(|all| too_many("signatures of the envelope", all.len(), 1))?;
            let material = Material {
                signature: one.sig.0,
                message: pre_authentication(&payload_type, &payload.0),
                payload: Some(payload.0.clone()),
                chain,
                entries,
            };
            required.authenticate(&material, now)?;
            statement(
                &payload_type,
                &payload.0,
                &required.identity,
                image,
                documents,
            )
        }
        (None, Some(message)) => {
            let digest = message.message_digest.digest()?;
            let material = Material {
                signature: message.signature.0,
                message: documents.check(&digest)?.to_vec(),
                payload: None,
                chain,
                entries,
            };
            required.authenticate(&material, now)?;
            named(&required.identity, image, &[])
        }
        _ => Err(Reason::format(FORMAT, "it has not exactly one content")),
    }
}

/// The bytes that a DSSE envelope signs.
fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

fn statement(
    payload_type: &str,
    payload: &[u8],
    identity: &Identity,
    image: &Reference,
    documents: &Documents,
) -> Result<(), Reason> {
    if payload_type != IN_TOTO {
        return Err(Reason::Predicate(payload_type.to_owned()));
    }
    let statement: Statement =
        serde_json::from_slice(payload).map_err(|error| Reason::format("its statement", error))?;
    if !STATEMENTS.contains(&statement.kind.as_str()) || statement.predicate_type != SIGN {
        return Err(Reason::Predicate(statement.predicate_type));
    }
    let found = statement.subject.len();
    if found > SUBJECTS_MAX {
        return Err(too_many("subjects of the statement", found, SUBJECTS_MAX));
    }
    let mut names = Vec::new();
    let mut other = Reason::format("its statement", "it has no subject with a digest");
    for subject in &statement.subject {
        match subject.check(documents) {
            Ok(()) => names.push(subject.name.as_str()),
            Err(reason) => other = reason,
        }
    }
    if names.is_empty() {
        return Err(other);
    }
    named(identity, image, &names)
}

impl StatementSubject {
    fn check(&self, documents: &Documents) -> Result<(), Reason> {
        let mut last = Reason::format("its statement", "a subject has no digest that we know");
        for (algorithm, hex) in &self.digest {
            let Ok(digest) = format!("{algorithm}:{hex}").parse() else {
                continue;
            };
            match documents.check(&digest) {
                Ok(_) => return Ok(()),
                Err(reason) => last = reason,
            }
        }
        Err(last)
    }
}

impl MessageDigest {
    fn digest(&self) -> Result<Digest, Reason> {
        let name = match self.algorithm.as_str() {
            "SHA2_256" => "sha256",
            "SHA2_512" => "sha512",
            other => return Err(Reason::Unsupported(format!("the digest {other:?}"))),
        };
        format!("{name}:{}", hex::encode(&self.digest.0))
            .parse()
            .map_err(|error| Reason::format(FORMAT, error))
    }
}

/// Whether one of the signed names, if there is one, is admitted.
fn named(identity: &Identity, image: &Reference, names: &[&str]) -> Result<(), Reason> {
    if *identity == Identity::Digest {
        return Ok(());
    }
    let mut names = names.iter().filter(|name| !name.is_empty()).peekable();
    let rule = identity.name();
    let Some(first) = names.peek() else {
        return Err(Reason::NoIdentity { rule });
    };
    let signed = (**first).to_owned();
    if names.any(|name| identity.admits(image, name)) {
        Ok(())
    } else {
        Err(Reason::Identity { signed, rule })
    }
}

fn chain(material: &Verification) -> Option<Chain> {
    if let Some(certificate) = &material.certificate {
        return Some(Chain {
            leaf: certificate.raw_bytes.0.clone(),
            others: Vec::new(),
        });
    }
    let (leaf, others) = material
        .x509_certificate_chain
        .as_ref()?
        .certificates
        .split_first()?;
    Some(Chain {
        leaf: leaf.raw_bytes.0.clone(),
        others: others.iter().map(|it| it.raw_bytes.0.clone()).collect(),
    })
}

fn entries(wire: Vec<LogEntry>) -> Result<Vec<Entry>, Reason> {
    if wire.len() > ENTRIES_MAX {
        return Err(too_many("entries of Rekor", wire.len(), ENTRIES_MAX));
    }
    let entry = |wire: LogEntry| Entry {
        body: wire.canonicalized_body.0,
        integrated_time: wire.integrated_time.map_or(0, |number| number.0),
        log_index: wire.log_index.0,
        log_id: hex::encode(wire.log_id.key_id.0),
        entry_timestamp: wire
            .inclusion_promise
            .map(|promise| promise.signed_entry_timestamp.0),
        proof: wire.inclusion_proof.map(|proof| Proof {
            index: proof.log_index.map_or(0, |number| number.0),
            size: proof.tree_size.0,
            root: proof.root_hash.0,
            path: proof.hashes.into_iter().map(|hash| hash.0).collect(),
            checkpoint: proof.checkpoint.envelope,
        }),
    };
    Ok(wire.into_iter().map(entry).collect())
}

fn too_many(what: &str, found: usize, cap: usize) -> Reason {
    Reason::TooMany {
        what: format!("{FORMAT}: {what}"),
        found,
        cap,
    }
}
