//! Events as claims, with Trustee's names.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;

use super::{Details, Event};

/// An event as an entry of the claim `uefi_event_logs`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventClaims {
    details: Details,
    digest_matches_event: bool,
    digests: Vec<DigestClaims>,
    event: String,
    index: u32,
    type_name: &'static str,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct DigestClaims {
    alg: &'static str,
    digest: String,
}

impl From<&Event<'_>> for EventClaims {
    fn from(event: &Event<'_>) -> Self {
        let digest = |digest: &super::EventDigest<'_>| DigestClaims {
            alg: digest.algorithm.name(),
            digest: hex::encode(digest.digest),
        };
        Self {
            details: Details::of(event.kind, event.data),
            digest_matches_event: event.digest_matches(),
            digests: event.digests.iter().map(digest).collect(),
            event: BASE64_STANDARD.encode(event.data),
            index: event.index,
            type_name: event.kind.name(),
        }
    }
}
