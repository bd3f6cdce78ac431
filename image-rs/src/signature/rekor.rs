//! Entries of the transparency log Rekor, checked without asking it.
//!
//! Two things can prove that an entry is in the log: the log's signed promise (SET), which also dates it, and a path
//! to a root that the log signed (checkpoint), which does not. Whichever is there must hold, and one must be there.
//! An entry that is in the log proves something only if it is about this signature, by this key, over these bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use serde::Deserialize;

use super::key::{PublicKey, any_pem};
use super::merkle::{self, Hash, PATH_MAX};
use super::refusal::Reason;

/// Cap on an entry's body, in bytes.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// Cap on a checkpoint, in bytes.
const CHECKPOINT_BYTES_MAX: usize = 16 * 1024;
/// Cap on the signatures of a checkpoint.
const CHECKPOINT_SIGNATURES_MAX: usize = 16;
const FORMAT: &str = "the entry of Rekor";

/// An entry as it came with a signature.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) body: Vec<u8>,
    pub(super) integrated_time: u64,
    pub(super) log_index: u64,
    /// SHA-256 of the log's key, in hexadecimal digits.
    pub(super) log_id: String,
    pub(super) entry_timestamp: Option<Vec<u8>>,
    pub(super) proof: Option<Proof>,
}

/// A path to a root that the log signed.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) index: u64,
    pub(super) size: u64,
    pub(super) root: Vec<u8>,
    pub(super) path: Vec<Vec<u8>>,
    pub(super) checkpoint: String,
}

/// What an entry must be about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) signature: &'a [u8],
    /// The DER of the signer's certificate, or of its key where there is none.
    pub(super) author: &'a [u8],
    pub(super) content: Content<'a>,
}

/// What was signed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content<'a> {
    /// Bytes as they are.
    Plain(&'a [u8]),
    /// The payload of a DSSE envelope.
    Envelope(&'a [u8]),
}

impl Entry {
    /// Checks everything; gives the time that the log vouches for, if it does.
    pub(super) fn verify(
        &self,
        keys: &[PublicKey],
        claim: Claim<'_>,
    ) -> Result<Option<u64>, Reason> {
        if self.body.len() > BODY_BYTES_MAX {
            return Err(too_many("its body", self.body.len(), BODY_BYTES_MAX));
        }
        if self.entry_timestamp.is_none() && self.proof.is_none() {
            return Err(Reason::NoEntry(
                "neither a signed entry timestamp nor an inclusion proof",
            ));
        }
        let time = match &self.entry_timestamp {
            Some(signature) => {
                let promise = self.promise();
                if !keys.iter().any(|key| key.verifies(&promise, signature)) {
                    return Err(Reason::EntryTimestamp);
                }
                Some(self.integrated_time)
            }
            None => None,
        };
        if let Some(proof) = &self.proof {
            proof.verify(&self.body, keys)?;
        }
        Body::read(&self.body)?.confirm(claim)?;
        Ok(time)
    }

    /// The bytes that an SET signs: canonical JSON (RFC 8785), which for these four fields is their order.
    fn promise(&self) -> Vec<u8> {
        format!(
            r#"{{"body":"{}","integratedTime":{},"logID":"{}","logIndex":{}}}"#,
            STANDARD.encode(&self.body),
            self.integrated_time,
            hex::encode(hex::decode(&self.log_id).unwrap_or_default()),
            self.log_index
        )
        .into_bytes()
    }
}

impl Proof {
    fn verify(&self, body: &[u8], keys: &[PublicKey]) -> Result<(), Reason> {
        if self.path.len() > PATH_MAX {
            return Err(too_many("its path", self.path.len(), PATH_MAX));
        }
        let path: Option<Vec<Hash>> = self
            .path
            .iter()
            .map(|hash| hash.as_slice().try_into().ok())
            .collect();
        let path = path.ok_or(Reason::Proof("a hash has not 32 bytes"))?;
        let root = merkle::root(merkle::leaf(body), self.index, self.size, &path);
        match root {
            Some(root) if root.as_slice() == self.root => {}
            _ => return Err(Reason::Proof("the path does not lead to the root")),
        }
        let (size, root) = checkpoint(&self.checkpoint, keys)?;
        if size != self.size || root != self.root {
            return Err(Reason::Proof("the checkpoint is for another tree"));
        }
        Ok(())
    }
}

/// The size and the root of a signed note, if one of the keys signed it.
fn checkpoint(note: &str, keys: &[PublicKey]) -> Result<(u64, Vec<u8>), Reason> {
    if note.len() > CHECKPOINT_BYTES_MAX {
        return Err(too_many("its checkpoint", note.len(), CHECKPOINT_BYTES_MAX));
    }
    let malformed = Reason::Proof("the checkpoint is malformed");
    let Some((text, signatures)) = note.split_once("\n\n") else {
        return Err(malformed);
    };
    let text = format!("{text}\n");
    let signed = signatures
        .lines()
        .take(CHECKPOINT_SIGNATURES_MAX)
        .filter_map(|line| line.strip_prefix("\u{2014} ")?.split_once(' '))
        .any(|(signer, signature)| {
            let Ok(signature) = STANDARD.decode(signature) else {
                return false;
            };
            // Four bytes say by which key.
            let Some((hint, signature)) = signature.split_at_checked(4) else {
                return false;
            };
            let by = |key: &PublicKey| {
                key.note_hint(signer) == *hint && key.verifies(text.as_bytes(), signature)
            };
            keys.iter().any(by)
        });
    if !signed {
        return Err(Reason::Proof("the checkpoint is not by the policy's Rekor"));
    }
    let mut lines = text.lines().skip(1);
    let size = lines.next().and_then(|line| line.parse().ok());
    let root = lines.next().and_then(|line| STANDARD.decode(line).ok());
    size.zip(root).ok_or(malformed)
}

/// The body of an entry, of one of the kinds that can be about a signature of an image.
#[derive(Debug, Deserialize)]
struct Body {
    kind: String,
    #[serde(rename = "apiVersion")]
    version: String,
    spec: serde_json::Value,
}

#[derive(Deserialize)]
struct HashedRekord {
    data: HashedData,
    signature: HashedSignature,
}

#[derive(Deserialize)]
struct HashedData {
    hash: HashOf,
}

#[derive(Deserialize)]
struct HashOf {
    algorithm: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HashedSignature {
    content: String,
    public_key: Pem,
}

#[derive(Deserialize)]
struct Pem {
    content: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dsse {
    payload_hash: HashOf,
    signatures: Vec<DsseSignature>,
}

#[derive(Deserialize)]
struct DsseSignature {
    signature: String,
    verifier: String,
}

#[derive(Deserialize)]
struct Intoto {
    content: IntotoContent,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IntotoContent {
    envelope: IntotoEnvelope,
    payload_hash: HashOf,
}

#[derive(Deserialize)]
struct IntotoEnvelope {
    signatures: Vec<IntotoSignature>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IntotoSignature {
    sig: String,
    public_key: String,
}

impl Body {
    fn read(bytes: &[u8]) -> Result<Self, Reason> {
        serde_json::from_slice(bytes).map_err(|error| Reason::format(FORMAT, error))
    }

    fn confirm(self, claim: Claim<'_>) -> Result<(), Reason> {
        let (kind, version) = (self.kind.as_str(), self.version.as_str());
        match (kind, version, claim.content) {
            ("hashedrekord", "0.0.1", Content::Plain(bytes)) => {
                let spec: HashedRekord = spec(self.spec)?;
                same_hash(&spec.data.hash, bytes)?;
                same_signature(&decode(&spec.signature.content)?, claim)?;
                same_author(&spec.signature.public_key.content, claim)
            }
            ("dsse", "0.0.1", Content::Envelope(payload)) => {
                let spec: Dsse = spec(self.spec)?;
                same_hash(&spec.payload_hash, payload)?;
                let [one] = spec.signatures.as_slice() else {
                    return Err(Reason::Entry("number of signatures"));
                };
                same_signature(&decode(&one.signature)?, claim)?;
                same_author(&one.verifier, claim)
            }
            ("intoto", "0.0.2", Content::Envelope(payload)) => {
                let spec: Intoto = spec(self.spec)?;
                same_hash(&spec.content.payload_hash, payload)?;
                let [one] = spec.content.envelope.signatures.as_slice() else {
                    return Err(Reason::Entry("number of signatures"));
                };
                // This kind has it in base64 twice.
                let signature = String::from_utf8(decode(&one.sig)?).unwrap_or_default();
                same_signature(&decode(&signature)?, claim)?;
                same_author(&one.public_key, claim)
            }
            ("hashedrekord" | "dsse", "0.0.1", _) | ("intoto", "0.0.2", _) => {
                Err(Reason::Entry("kind of signature"))
            }
            _ => Err(Reason::Unsupported(format!(
                "an entry of Rekor of kind {kind:?}, version {version:?},"
            ))),
        }
    }
}

fn spec<T: for<'de> Deserialize<'de>>(value: serde_json::Value) -> Result<T, Reason> {
    serde_json::from_value(value).map_err(|error| Reason::format(FORMAT, error))
}

fn decode(text: &str) -> Result<Vec<u8>, Reason> {
    STANDARD
        .decode(text)
        .map_err(|error| Reason::format(FORMAT, error))
}

fn same_hash(hash: &HashOf, bytes: &[u8]) -> Result<(), Reason> {
    let algorithm = match hash.algorithm.as_str() {
        "sha256" => &digest::SHA256,
        "sha384" => &digest::SHA384,
        "sha512" => &digest::SHA512,
        other => {
            return Err(Reason::Unsupported(format!(
                "the hash {other:?} in an entry of Rekor"
            )));
        }
    };
    if hex::decode(&hash.value).ok().as_deref() == Some(digest::digest(algorithm, bytes).as_ref()) {
        Ok(())
    } else {
        Err(Reason::Entry("payload"))
    }
}

fn same_signature(found: &[u8], claim: Claim<'_>) -> Result<(), Reason> {
    if found == claim.signature {
        Ok(())
    } else {
        Err(Reason::Entry("signature"))
    }
}

/// The entry's PEM must hold the very certificate or key; its label is not looked at, as others do not either.
fn same_author(base64: &str, claim: Claim<'_>) -> Result<(), Reason> {
    let found = any_pem(&decode(base64)?)
        .ok_or_else(|| Reason::format(FORMAT, "its certificate or key is not in PEM"))?;
    if found == claim.author {
        Ok(())
    } else {
        Err(Reason::Entry("certificate or key"))
    }
}

fn too_many(what: &str, found: usize, cap: usize) -> Reason {
    Reason::TooMany {
        what: format!("{FORMAT}: {what}"),
        found,
        cap,
    }
}
