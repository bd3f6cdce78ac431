//! Signed certificate timestamps (RFC 6962 §3): that a certificate is in a log which anyone can watch.
//!
//! A log signs the certificate as it was before its timestamps were put in, with the hash of its issuer's key.

use sha2::{Digest as _, Sha256};

use super::der;
use super::key::PublicKey;
use super::refusal::Reason;

/// Cap on the timestamps of a certificate.
const TIMESTAMPS_MAX: usize = 16;
/// The content of the extension's `OBJECT IDENTIFIER`, 1.3.6.1.4.1.11129.2.4.2.
const OID: &[u8] = &[0x2b, 6, 1, 4, 1, 0xd6, 0x79, 2, 4, 2];
const OCTET_STRING: u8 = 4;

/// One timestamp.
struct Timestamp<'a> {
    log: &'a [u8],
    time: &'a [u8],
    extensions: &'a [u8],
    signature: &'a [u8],
}

/// Whether one of the timestamps in `extension` is by one of `keys`, for the certificate `tbs`.
pub(super) fn verify(
    extension: &[u8],
    tbs: &[u8],
    issuer_key: &[u8],
    keys: &[PublicKey],
) -> Result<(), Reason> {
    let malformed = || Reason::CertificateLog("its timestamps are malformed");
    let list = content(extension).and_then(list).ok_or_else(malformed)?;
    let tbs = der::without_extension(tbs, OID).ok_or_else(malformed)?;
    let signed = |timestamp: &Timestamp<'_>| {
        let bytes = signed_bytes(timestamp, &tbs, issuer_key)?;
        let by = |key: &PublicKey| {
            key.id() == *timestamp.log && key.verifies(&bytes, timestamp.signature)
        };
        keys.iter().any(by).then_some(())
    };
    if list.iter().any(|timestamp| signed(timestamp).is_some()) {
        return Ok(());
    }
    Err(Reason::CertificateLog(
        "no timestamp is by the policy's log",
    ))
}

/// `digitally-signed struct` of RFC 6962 §3.2, for a precertificate.
fn signed_bytes(timestamp: &Timestamp<'_>, tbs: &[u8], issuer_key: &[u8]) -> Option<Vec<u8>> {
    let (version, certificate_timestamp, precert_entry) = (0_u8, 0_u8, [0_u8, 1]);
    let length = u32::try_from(tbs.len()).ok()?.to_be_bytes();
    let mut bytes = vec![version, certificate_timestamp];
    bytes.extend(timestamp.time);
    bytes.extend(precert_entry);
    bytes.extend(Sha256::digest(issuer_key));
    bytes.extend(length.get(1..)?);
    bytes.extend(tbs);
    bytes.extend(
        u16::try_from(timestamp.extensions.len())
            .ok()?
            .to_be_bytes(),
    );
    bytes.extend(timestamp.extensions);
    Some(bytes)
}

/// The content of an `OCTET STRING`.
fn content(der: &[u8]) -> Option<&[u8]> {
    // Written again it must be the same, so that a length is what it says.
    (2..=4).find_map(|head| {
        let content = der.get(head..)?;
        (der::write(OCTET_STRING, content) == der).then_some(content)
    })
}

fn list(bytes: &[u8]) -> Option<Vec<Timestamp<'_>>> {
    let (mut rest, behind) = vector(bytes)?;
    let mut timestamps = Vec::new();
    while !rest.is_empty() {
        if timestamps.len() == TIMESTAMPS_MAX {
            return None;
        }
        let (one, next) = vector(rest)?;
        timestamps.push(timestamp(one)?);
        rest = next;
    }
    behind.is_empty().then_some(timestamps)
}

fn timestamp(bytes: &[u8]) -> Option<Timestamp<'_>> {
    let (version, rest) = bytes.split_first()?;
    let (log, rest) = rest.split_at_checked(32)?;
    let (time, rest) = rest.split_at_checked(8)?;
    let (extensions, rest) = vector(rest)?;
    // The hash and the algorithm of the signature: the key says both.
    let (_, rest) = rest.split_at_checked(2)?;
    let (signature, rest) = vector(rest)?;
    (*version == 0 && rest.is_empty()).then_some(Timestamp {
        log,
        time,
        extensions,
        signature,
    })
}

/// Bytes behind their length in two bytes, and what follows.
fn vector(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(2)?;
    let length = usize::from(u16::from_be_bytes(length.try_into().ok()?));
    rest.split_at_checked(length)
}
