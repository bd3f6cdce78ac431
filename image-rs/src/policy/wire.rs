//! `containers-policy.json(5)` as text: every field is known, none stands twice, and each list has a cap.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

/// Cap on the scopes of a transport, and on transports.
const ENTRIES_MAX: usize = 4096;

/// A whole policy.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WireFile {
    pub(super) default: Vec<WireRequirement>,
    #[serde(default)]
    pub(super) transports: Unique<Unique<Vec<WireRequirement>>>,
}

/// One requirement.
#[derive(serde::Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum WireRequirement {
    #[serde(rename = "insecureAcceptAnything")]
    Accept {},
    #[serde(rename = "reject")]
    Reject {},
    #[serde(rename = "signedBy")]
    SignedBy(WireSignedBy),
    #[serde(rename = "signedBaseLayer", rename_all = "camelCase")]
    BaseLayer { base_layer_identity: WireIdentity },
    #[serde(rename = "sigstoreSigned")]
    Sigstore(Box<WireSigstore>),
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireSignedBy {
    pub(super) key_type: String,
    pub(super) key_path: Option<String>,
    pub(super) key_paths: Option<Vec<String>>,
    pub(super) key_data: Option<String>,
    pub(super) signed_identity: Option<WireIdentity>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireSigstore {
    pub(super) key_path: Option<String>,
    pub(super) key_paths: Option<Vec<String>>,
    pub(super) key_data: Option<String>,
    pub(super) key_datas: Option<Vec<String>>,
    pub(super) fulcio: Option<WireFulcio>,
    pub(super) pki: Option<WirePki>,
    pub(super) rekor_public_key_path: Option<String>,
    pub(super) rekor_public_key_paths: Option<Vec<String>>,
    pub(super) rekor_public_key_data: Option<String>,
    pub(super) rekor_public_key_datas: Option<Vec<String>>,
    pub(super) signed_identity: Option<WireIdentity>,
}

/// `subjectURI` and `ctPublicKey…` are ours: containers/image knows neither, and refuses a policy that has them.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WireFulcio {
    pub(super) ca_path: Option<String>,
    pub(super) ca_data: Option<String>,
    pub(super) oidc_issuer: String,
    pub(super) subject_email: Option<String>,
    #[serde(rename = "subjectURI")]
    pub(super) subject_uri: Option<String>,
    pub(super) ct_public_key_path: Option<String>,
    pub(super) ct_public_key_data: Option<String>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WirePki {
    pub(super) ca_roots_path: Option<String>,
    pub(super) ca_roots_data: Option<String>,
    pub(super) ca_intermediates_path: Option<String>,
    pub(super) ca_intermediates_data: Option<String>,
    pub(super) subject_email: Option<String>,
    pub(super) subject_hostname: Option<String>,
}

/// `matchDigest` is ours.
#[derive(serde::Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum WireIdentity {
    MatchExact {},
    MatchRepoDigestOrExact {},
    MatchRepository {},
    MatchDigest {},
    #[serde(rename_all = "camelCase")]
    ExactReference {
        docker_reference: String,
    },
    #[serde(rename_all = "camelCase")]
    ExactRepository {
        docker_repository: String,
    },
    #[serde(rename_all = "camelCase")]
    RemapIdentity {
        prefix: String,
        signed_prefix: String,
    },
}

/// A map in which no key stands twice: of two scopes with one name, a reader would see only one.
pub(super) struct Unique<T>(pub(super) BTreeMap<String, T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

struct Entries<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
    type Value = Unique<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, T>()? {
            if entries.len() >= ENTRIES_MAX {
                return Err(A::Error::custom(format!("more than {ENTRIES_MAX} entries")));
            }
            if entries.contains_key(&key) {
                return Err(A::Error::custom(format!("{key:?} stands there twice")));
            }
            entries.insert(key, value);
        }
        Ok(Unique(entries))
    }
}
