//! `signedBy`: simple signing with OpenPGP, as `gpg --sign` and `skopeo --sign-by` make it.
//!
//! rPGP reads packets, hashes and verifies; which key may sign, and when, is decided here, because it leaves that to its
//! users: a key that is revoked or expired, that may not sign, or a hash that can be forged is refused, each by name.

use std::io::Read;

use pgp::composed::{Deserializable, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::crypto::public_key::PublicKeyAlgorithm;
use pgp::packet::{KeyFlags, Packet, PacketParser, Signature, SignatureType, SubpacketData};
use pgp::ser::Serialize;
use pgp::types::{KeyDetails, Tag, VerifyingKey};

use super::document::Documents;
use super::payload::{self, Payload};
use super::refusal::Reason;
use super::{Found, Kind, PAYLOAD_BYTES_MAX};
use crate::policy::Identity;
use crate::reference::Reference;

/// Cap on the certificates of a keyring.
const KEYS_MAX: usize = 256;
/// Cap on the packets of a signature.
const PACKETS_MAX: usize = 8;
/// What an RSA key of 2048 bits has at least: the modulus and the exponent.
const RSA_BYTES_MIN: usize = 2 + 256 + 2 + 1;
/// How far a signer's clock may be ahead of ours, in seconds.
const CLOCK_SKEW: u64 = 600;
const ARMOR: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const FORMAT: &str = "the OpenPGP signature";

/// A requirement of type `signedBy`.
#[derive(Debug, Clone)]
pub(crate) struct SignedBy {
    pub(crate) keyring: Keyring,
    pub(crate) identity: Identity,
}

/// Keys that a policy trusts.
#[derive(Debug, Clone)]
pub(crate) struct Keyring(Vec<SignedPublicKey>);

impl SignedBy {
    /// Whether `found` counts for the image, at `now` in seconds since 1970.
    pub(super) fn judge(
        &self,
        found: &Found,
        image: &Reference,
        documents: &Documents,
        now: u64,
    ) -> Result<(), Reason> {
        let blob = match &found.kind {
            Kind::Gpg(blob) => blob,
            Kind::Unread(reason) => return Err(reason.clone()),
            Kind::Cosign { .. } | Kind::Bundle(_) => {
                return Err(Reason::Unsupported("a sigstore signature here".to_owned()));
            }
        };
        let payload = self.keyring.open(blob, now)?;
        let payload = Payload::read(&payload, payload::ATOMIC)?;
        documents.check(&payload.digest)?;
        payload.check_identity(&self.identity, image)
    }
}

impl Keyring {
    /// Reads keyrings, armored or not.
    pub(crate) fn new(rings: &[&[u8]]) -> Result<Self, String> {
        let mut keys = Vec::new();
        for ring in rings {
            let before = keys.len();
            for block in blocks(ring) {
                read_keys(&block, &mut keys)?;
            }
            if keys.len() == before {
                return Err("a keyring of it has no OpenPGP key".to_owned());
            }
        }
        Ok(Self(keys))
    }

    /// What was signed, if one of the keys signed it and may.
    fn open(&self, blob: &[u8], now: u64) -> Result<Vec<u8>, Reason> {
        let (payload, signature) = signed_message(blob)?;
        check_signature(&signature, now)?;
        for key in &self.0 {
            if signature
                .verify(&key.primary_key, payload.as_slice())
                .is_ok()
            {
                may_sign(key, None, &signature, now)?;
                return Ok(payload);
            }
            for subkey in &key.public_subkeys {
                if signature.verify(&subkey.key, payload.as_slice()).is_ok() {
                    may_sign(key, Some(subkey), &signature, now)?;
                    return Ok(payload);
                }
            }
        }
        Err(Reason::Key("any key of the policy's keyring"))
    }
}

/// A ring as it is, or each armored block in it.
fn blocks(ring: &[u8]) -> Vec<Vec<u8>> {
    let Ok(text) = std::str::from_utf8(ring) else {
        return vec![ring.to_vec()];
    };
    let mut starts: Vec<usize> = text.match_indices(ARMOR).map(|(at, _)| at).collect();
    if starts.is_empty() {
        return vec![ring.to_vec()];
    }
    starts.push(text.len());
    let part = |pair: &[usize]| text.as_bytes()[pair[0]..pair[1]].to_vec();
    starts.windows(2).map(part).collect()
}

fn read_keys(block: &[u8], keys: &mut Vec<SignedPublicKey>) -> Result<(), String> {
    let bad = |error: pgp::errors::Error| format!("a keyring of it is malformed: {error}");
    let found: Box<dyn Iterator<Item = pgp::errors::Result<SignedPublicKey>>> =
        if block.starts_with(ARMOR.as_bytes()) {
            SignedPublicKey::from_armor_many(block).map_err(bad)?.0
        } else {
            SignedPublicKey::from_bytes_many(block).map_err(bad)?
        };
    for key in found {
        keys.push(key.map_err(bad)?);
        if keys.len() > KEYS_MAX {
            return Err(format!("it has more than {KEYS_MAX} OpenPGP keys"));
        }
    }
    Ok(())
}

/// The payload and the one signature of a message; anything else around them is refused.
fn signed_message(blob: &[u8]) -> Result<(Vec<u8>, Signature), Reason> {
    let mut packets = packets(blob)?;
    if let [Packet::CompressedData(compressed)] = packets.as_slice() {
        let inner = compressed
            .decompress()
            .map_err(|error| Reason::format(FORMAT, error))?;
        let mut bytes = Vec::new();
        let cap = 2 * PAYLOAD_BYTES_MAX;
        inner
            .take(cap as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Reason::format(FORMAT, error))?;
        if bytes.len() > cap {
            return Err(Reason::TooMany {
                what: format!("{FORMAT}: its decompressed bytes"),
                found: bytes.len(),
                cap,
            });
        }
        packets = self::packets(&bytes)?;
    }
    let mut packets = packets.into_iter();
    match (
        packets.next(),
        packets.next(),
        packets.next(),
        packets.next(),
    ) {
        (
            Some(Packet::OnePassSignature(_)),
            Some(Packet::LiteralData(data)),
            Some(Packet::Signature(signature)),
            None,
        )
        | (Some(Packet::Signature(signature)), Some(Packet::LiteralData(data)), None, None) => {
            Ok((data.data().to_vec(), signature))
        }
        _ => Err(Reason::format(
            FORMAT,
            "it is not a message with one signature",
        )),
    }
}

fn packets(bytes: &[u8]) -> Result<Vec<Packet>, Reason> {
    let mut packets = Vec::new();
    for packet in PacketParser::new(bytes) {
        if packets.len() == PACKETS_MAX {
            return Err(Reason::TooMany {
                what: format!("{FORMAT}: its packets"),
                found: packets.len() + 1,
                cap: PACKETS_MAX,
            });
        }
        packets.push(packet.map_err(|error| Reason::format(FORMAT, error))?);
    }
    Ok(packets)
}

/// What holds of a signature whoever made it.
fn check_signature(signature: &Signature, now: u64) -> Result<(), Reason> {
    let refuse = |text: String| Err(Reason::Gpg(text));
    if signature.typ() != Some(SignatureType::Binary) {
        return refuse("it is not a signature of a document".to_owned());
    }
    if !is_strong(signature) {
        return refuse("its hash can be forged, or is not known".to_owned());
    }
    if has_unknown_condition(signature) {
        return refuse("it has a critical condition that is not known here".to_owned());
    }
    let Some(created) = created(signature) else {
        return refuse("it does not say when it was made".to_owned());
    };
    if created > now.saturating_add(CLOCK_SKEW) {
        return refuse("it was made later than now".to_owned());
    }
    let lasts = signature.signature_expiration_time();
    if is_over(created, lasts.map(|lasts| lasts.as_secs()), now) {
        return refuse("it has expired".to_owned());
    }
    Ok(())
}

/// Whether the key that made the signature was one that may sign, and still is.
fn may_sign(
    key: &SignedPublicKey,
    subkey: Option<&SignedPublicSubKey>,
    signature: &Signature,
    now: u64,
) -> Result<(), Reason> {
    let name = key.primary_key.fingerprint().to_string();
    let refuse = |why: &str| Err(Reason::Gpg(format!("its key {name} {why}")));
    let primary = &key.primary_key;
    let revoked = |it: &Signature| {
        it.typ() == Some(SignatureType::KeyRevocation) && it.verify_key(primary).is_ok()
    };
    if key.details.revocation_signatures.iter().any(revoked) {
        return refuse("is revoked");
    }
    let Some(latest) = newest(&self_signatures(key)) else {
        return refuse("has no user id or binding that holds");
    };
    let since = u64::from(primary.created_at().as_secs());
    if is_over(
        since,
        latest.key_expiration_time().map(|it| it.as_secs()),
        now,
    ) {
        return refuse("has expired");
    }
    let made_by = match subkey {
        Some(subkey) => {
            check_subkey(key, subkey, &name, now)?;
            subkey.key.created_at()
        }
        None if flags(latest).is_some_and(|flags| !flags.sign()) => {
            return refuse("may not sign, by its own word");
        }
        None => primary.created_at(),
    };
    let weak = match subkey {
        Some(subkey) => is_weak(&subkey.key),
        None => is_weak(primary),
    };
    if weak {
        return refuse("is too weak, or of an algorithm that is not supported");
    }
    // A key cannot have signed before it was there.
    if created(signature).is_some_and(|time| time < u64::from(made_by.as_secs())) {
        return refuse("is newer than the signature");
    }
    Ok(())
}

fn check_subkey(
    key: &SignedPublicKey,
    subkey: &SignedPublicSubKey,
    name: &str,
    now: u64,
) -> Result<(), Reason> {
    let refuse = |why: &str| Err(Reason::Gpg(format!("a subkey of its key {name} {why}")));
    let primary = &key.primary_key;
    let holds =
        |it: &&Signature| is_strong(it) && it.verify_subkey_binding(primary, &subkey.key).is_ok();
    let all: Vec<&Signature> = subkey.signatures.iter().filter(holds).collect();
    let of = |kind: SignatureType| {
        let mut some = all.iter().filter(move |it| it.typ() == Some(kind));
        some.next().is_some()
    };
    if of(SignatureType::SubkeyRevocation) {
        return refuse("is revoked");
    }
    let bindings: Vec<&Signature> = all
        .into_iter()
        .filter(|it| it.typ() == Some(SignatureType::SubkeyBinding))
        .collect();
    let Some(binding) = newest(&bindings) else {
        return refuse("is not bound to it");
    };
    // The subkey must sign back, else anybody could adopt another's key as their own.
    let signs_back = binding
        .embedded_signature()
        .is_some_and(|it| it.verify_primary_key_binding(&subkey.key, primary).is_ok());
    if !flags(binding).is_some_and(|flags| flags.sign()) || !signs_back {
        return refuse("may not sign, by its own word");
    }
    let since = u64::from(subkey.key.created_at().as_secs());
    if is_over(
        since,
        binding.key_expiration_time().map(|it| it.as_secs()),
        now,
    ) {
        return refuse("has expired");
    }
    Ok(())
}

/// What a key says of itself, as far as it holds: with its user ids that are not revoked, and directly.
fn self_signatures(key: &SignedPublicKey) -> Vec<&Signature> {
    let primary = &key.primary_key;
    let mut all: Vec<&Signature> = Vec::new();
    for user in &key.details.users {
        let holds = |it: &&Signature| {
            it.verify_certification(primary, Tag::UserId, &user.id)
                .is_ok()
        };
        let own: Vec<&Signature> = user.signatures.iter().filter(holds).collect();
        let revoked = |it: &&Signature| it.typ() == Some(SignatureType::CertRevocation);
        if !own.iter().any(revoked) {
            all.extend(own);
        }
    }
    let direct = key.details.direct_signatures.iter();
    all.extend(
        direct.filter(|it| it.typ() == Some(SignatureType::Key) && it.verify_key(primary).is_ok()),
    );
    all.retain(|it| is_strong(it));
    all
}

fn newest<'a>(signatures: &[&'a Signature]) -> Option<&'a Signature> {
    signatures
        .iter()
        .copied()
        .max_by_key(|signature| created(signature))
}

fn created(signature: &Signature) -> Option<u64> {
    signature.created().map(|time| u64::from(time.as_secs()))
}

/// Whether what lasts some seconds from `since` is over; what lasts none, or does not say, never is.
fn is_over(since: u64, lasts: Option<u32>, now: u64) -> bool {
    lasts.is_some_and(|seconds| seconds != 0 && since.saturating_add(u64::from(seconds)) <= now)
}

fn is_strong(signature: &Signature) -> bool {
    matches!(
        signature.hash_alg(),
        Some(
            HashAlgorithm::Sha256
                | HashAlgorithm::Sha384
                | HashAlgorithm::Sha512
                | HashAlgorithm::Sha3_256
                | HashAlgorithm::Sha3_512
        )
    )
}

fn has_unknown_condition(signature: &Signature) -> bool {
    let unknown = |data: &SubpacketData| {
        matches!(
            data,
            SubpacketData::Other(..) | SubpacketData::Experimental(..) | SubpacketData::Notation(_)
        )
    };
    signature.config().is_none_or(|config| {
        let mut packets = config.hashed_subpackets();
        packets.any(|packet| packet.is_critical && unknown(&packet.data))
    })
}

fn flags(signature: &Signature) -> Option<KeyFlags> {
    let mut packets = signature.config()?.hashed_subpackets();
    let has = packets.any(|packet| matches!(packet.data, SubpacketData::KeyFlags(_)));
    has.then(|| signature.key_flags())
}

fn is_weak(key: &impl VerifyingKey) -> bool {
    match key.algorithm() {
        PublicKeyAlgorithm::RSA | PublicKeyAlgorithm::RSASign => {
            key.public_params().write_len() < RSA_BYTES_MIN
        }
        PublicKeyAlgorithm::ECDSA
        | PublicKeyAlgorithm::EdDSALegacy
        | PublicKeyAlgorithm::Ed25519
        | PublicKeyAlgorithm::Ed448 => false,
        _ => true,
    }
}
