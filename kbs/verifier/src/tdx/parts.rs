//! Intel's collateral as it is fetched, kept and carried: nine members, in `dcap-qvl`'s JSON.
//!
//! The documents stay the text that Intel signed, byte for byte. Signatures and lists of revoked
//! certificates are in hex.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// The most bytes of one chain of certificates in PEM; Intel's have less than 2 KiB.
pub const CHAIN_BYTES: usize = 32 * 1024;
/// The most bytes of the TCB info or of the QE identity; Intel's have less than 40 KiB.
pub const DOCUMENT_BYTES: usize = 512 * 1024;
/// The most bytes of one list of revoked certificates.
pub const CRL_BYTES: usize = 1 << 20;
/// Bytes of a signature over a document: both numbers of ECDSA over P-256.
pub const SIGNATURE_BYTES: usize = 64;

/// What Intel's provisioning service answers for one platform.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parts {
    /// PEM, signer first: who signed `tcb_info`.
    #[serde(deserialize_with = "chain")]
    pub tcb_info_issuer_chain: String,
    /// The member `tcbInfo` of the answer, byte for byte.
    #[serde(deserialize_with = "document")]
    pub tcb_info: String,
    /// Over the bytes of `tcb_info`.
    #[serde(with = "signature")]
    pub tcb_info_signature: Vec<u8>,
    /// PEM, signer first: who signed `qe_identity`.
    #[serde(deserialize_with = "chain")]
    pub qe_identity_issuer_chain: String,
    /// The member `enclaveIdentity` of the answer, byte for byte.
    #[serde(deserialize_with = "document")]
    pub qe_identity: String,
    /// Over the bytes of `qe_identity`.
    #[serde(with = "signature")]
    pub qe_identity_signature: Vec<u8>,
    /// PEM, issuer first: who signed `pck_crl`.
    #[serde(deserialize_with = "chain")]
    pub pck_crl_issuer_chain: String,
    /// DER: the revoked certificates of platforms.
    #[serde(with = "list")]
    pub pck_crl: Vec<u8>,
    /// DER: the revoked certificates of the root.
    #[serde(with = "list")]
    pub root_ca_crl: Vec<u8>,
}

/// Collateral is public; it is only too long to print.
impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parts")
    }
}

fn chain<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    text(from, CHAIN_BYTES)
}

fn document<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    text(from, DOCUMENT_BYTES)
}

fn text<'de, D: Deserializer<'de>>(from: D, most: usize) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    if text.len() > most {
        return Err(D::Error::custom(format_args!("more than {most} bytes")));
    }
    Ok(text)
}

fn bytes<'de, D: Deserializer<'de>>(from: D, most: usize) -> Result<Vec<u8>, D::Error> {
    hex::decode(text(from, 2 * most)?).map_err(|_| D::Error::custom("not hex"))
}

mod signature {
    use super::{Deserializer, Error, SIGNATURE_BYTES, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let bytes = super::bytes(from, SIGNATURE_BYTES)?;
        if bytes.len() != SIGNATURE_BYTES {
            let found = bytes.len();
            return Err(D::Error::custom(format_args!(
                "a signature of {found} bytes where {SIGNATURE_BYTES} are needed"
            )));
        }
        Ok(bytes)
    }
}

mod list {
    use super::{CRL_BYTES, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        super::bytes(from, CRL_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn good() -> Value {
        json!({
            "tcb_info_issuer_chain": "a", "tcb_info": "{}", "tcb_info_signature": "00".repeat(64),
            "qe_identity_issuer_chain": "b", "qe_identity": "{}",
            "qe_identity_signature": "01".repeat(64),
            "pck_crl_issuer_chain": "c", "pck_crl": "3000", "root_ca_crl": "3000",
        })
    }

    #[test]
    fn parts_are_read_back_from_their_json() {
        let parts = Parts::deserialize(&good()).unwrap();
        assert_eq!(serde_json::to_value(&parts).unwrap(), good());
    }

    #[test]
    fn other_forms_are_refused() {
        for (member, value) in [
            ("other", json!(1)),
            ("pck_crl", json!("zz")),
            ("pck_crl", json!("00".repeat(CRL_BYTES + 1))),
            ("tcb_info", json!("a".repeat(DOCUMENT_BYTES + 1))),
            ("tcb_info_signature", json!("00".repeat(63))),
            ("tcb_info_signature", json!("00".repeat(65))),
            ("pck_crl_issuer_chain", json!("a".repeat(CHAIN_BYTES + 1))),
        ] {
            let mut changed = good();
            changed[member] = value;
            assert!(Parts::deserialize(&changed).is_err(), "{member}");
        }
    }
}
