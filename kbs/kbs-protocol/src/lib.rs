//! The KBS attestation protocol (RCAR) 0.4.0, as both of its ends speak it.
//!
//! Messages with their exact wire names, the rule that binds a key to evidence, the JWE in which a
//! resource travels, the errors and their HTTP statuses, and the names of resources. Nothing here
//! opens a socket or a file: the broker and the guest share one definition of each format.
//!
//! Protocol: <https://github.com/confidential-containers/trustee/blob/main/kbs/docs/kbs_attestation_protocol.md>.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod jwe;
mod key;
pub mod limit;
mod message;
mod report_data;
mod resource;
mod secret;

pub use error::{ERROR_TYPE_PREFIX, ErrorInformation, ErrorKind};
pub use jwe::{Jwe, JweError, seal};
pub use key::{KeyError, KeyKind, TeeKeyPair, TeePubKey};
pub use message::{
    AttestRequest, AuthRequest, AuthResponse, EVENT_LOG, InitData, NegotiationError, Ours,
    Released, RuntimeData, TeeEvidence, TokenResponse,
};
pub use report_data::{HASH_ALGORITHM, REPORT_DATA_BYTES, device_report_data, report_data};
pub use resource::{ResourceError, ResourcePath, ResourceUri};
pub use secret::Secret;

/// The one protocol version that both ends speak.
pub const VERSION: &str = "0.4.0";

/// What every path of the protocol starts with.
pub const PREFIX: &str = "/kbs/v0";

/// The cookie that carries a challenge from `auth` to `attest`.
pub const SESSION_COOKIE: &str = "kbs-session-id";
