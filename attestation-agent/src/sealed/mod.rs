//! Sealed secrets: what an owner may put into a pod's public description, because only the guest opens it.
//!
//! ```text
//! "sealed." header "." payload "." signature          CoCo's format 0.1.0: a compact JWS, ES256
//!     │
//! Signed::parse ──► kid ──► verification key ──verified──► Payload ──► vault:    a resource of the broker
//!                                             (or, where the owner     envelope: data under a key that a key of
//!                                              says so, unverified)              the broker wraps
//! ```
//!
//! The envelope's key is wrapped as RFC 3394 says (AES-256): CoCo leaves that to the key service, and a key
//! broker has no format of its own. Three annotations are Cloister's; they are signed with the rest:
//! `cloister.name`, `cloister.init-data` and `cloister.lease-seconds` (see [`Terms`]).
//!
//! Spec: <https://github.com/confidential-containers/guest-components/blob/main/confidential-data-hub/docs/SEALED_SECRET.md>.

mod jwk;
mod jws;
mod payload;
mod seal;
mod terms;

pub use jwk::VerifyingKey;
pub use jws::Signed;
pub use payload::{Content, Envelope, Payload};
pub use seal::{SealKey, Sealer};
pub use terms::Terms;

/// How a sealed secret begins.
pub const PREFIX: &str = "sealed.";
/// Bytes of a sealed secret as text. More than the largest resource needs in base64 twice.
pub const SEALED_BYTES: usize = 4 * 1024 * 1024;

/// Whether a text calls itself a sealed secret.
#[must_use]
pub fn is_sealed(text: &[u8]) -> bool {
    text.starts_with(PREFIX.as_bytes())
}

/// A sealed secret that is none, or not for us. No text has any of its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// Larger than the cap.
    #[error("a sealed secret has at most {SEALED_BYTES} bytes")]
    TooLarge,
    /// Not `sealed.` and three parts.
    #[error("not of the form `sealed.<header>.<payload>.<signature>`")]
    Form,
    /// A part that is not base64, or not the JSON of the format.
    #[error("the {part} cannot be read: {cause}")]
    Part {
        /// Which one.
        part: &'static str,
        /// Why not.
        cause: &'static str,
    },
    /// A signature of another kind, or none.
    #[error("signed with `{0}`: only ES256 is taken, and no secret without a signature")]
    Algorithm(String),
    /// The signature is not the key's.
    #[error("the signature is not that of key {kid}: sign it anew with `attestation-agent seal`")]
    Signature {
        /// The key.
        kid: String,
    },
    /// The verification key is no key.
    #[error("verification key {kid} is no JWK of P-256: {cause}")]
    Key {
        /// The key.
        kid: String,
        /// Why not.
        cause: &'static str,
    },
    /// A key that init-data does not name, where it names some.
    #[error(
        "init-data does not name the verification key {kid}: add it to `sealed_secret.verification_keys`"
    )]
    UnknownKey {
        /// The key.
        kid: String,
    },
    /// A version, type, provider or cipher that is not supported.
    #[error("{member} `{found}` is not supported: use {fix}")]
    Unsupported {
        /// The member of the payload.
        member: &'static str,
        /// Its value, shortened.
        found: String,
        /// What to write.
        fix: &'static str,
    },
    /// The envelope does not open.
    #[error("the {0} was altered, or belongs to another key")]
    Open(&'static str),
    /// Bound to another pod.
    #[error("bound to a pod with other init-data")]
    OtherPod,
    /// Bound to another place.
    #[error("bound to the name `{0}`")]
    OtherName(String),
    /// A lease, in a place that cannot be emptied.
    #[error("has a lease, and cannot be taken back from here: mount it as a file")]
    Lease,
}

/// A piece of a foreign text that is safe to print.
fn shown(text: &str) -> String {
    const SHOWN: usize = 64;
    let printable = text.chars().map(|c| if c.is_control() { '?' } else { c });
    printable.take(SHOWN).collect()
}
