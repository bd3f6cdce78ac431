//! What a simple signature says (`containers-signature(5)`): the digest of a manifest, and a name for it.
//!
//! `critical` is read strictly, so that nobody signs a condition that we would not see; `optional` is not looked at.

use serde::Deserialize;

use super::refusal::Reason;
use crate::digest::Digest;
use crate::policy::Identity as Rule;
use crate::reference::Reference;

/// `critical.type` of a signature by GPG.
pub(super) const ATOMIC: &str = "atomic container signature";
/// `critical.type` of a signature by cosign.
pub(super) const COSIGN: &str = "cosign container image signature";

/// What was signed.
#[derive(Debug)]
pub(super) struct Payload {
    pub(super) digest: Digest,
    pub(super) reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    critical: Critical,
    #[serde(default, rename = "optional")]
    _optional: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: Image,
    identity: Identity,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Image {
    docker_manifest_digest: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Identity {
    docker_reference: String,
}

impl Payload {
    pub(super) fn read(bytes: &[u8], kind: &str) -> Result<Self, Reason> {
        let wire: Wire =
            serde_json::from_slice(bytes).map_err(|error| Reason::format("its payload", error))?;
        if wire.critical.kind != kind {
            let found = wire.critical.kind;
            return Err(Reason::format(
                "its payload",
                format!("the type is {found:?}, not {kind:?}"),
            ));
        }
        let digest = wire.critical.image.docker_manifest_digest;
        Ok(Self {
            digest: digest
                .parse()
                .map_err(|error| Reason::format("its payload", error))?,
            reference: wire.critical.identity.docker_reference,
        })
    }

    /// Whether it is for `image`, by the policy's rule.
    pub(super) fn check_identity(&self, rule: &Rule, image: &Reference) -> Result<(), Reason> {
        if rule.admits(image, &self.reference) {
            return Ok(());
        }
        let (signed, rule_name) = (self.reference.clone(), rule.name());
        Err(if rule.misses_tag(&signed) {
            Reason::NoTag {
                signed,
                rule: rule_name,
            }
        } else {
            Reason::Identity {
                signed,
                rule: rule_name,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(critical: &str) -> String {
        format!(r#"{{"critical":{{{critical}}},"optional":{{"creator":"x"}}}}"#)
    }

    #[test]
    fn a_condition_that_we_do_not_know_is_refused() {
        let digest = Digest::of(b"");
        let good = format!(
            r#""type":"{COSIGN}","image":{{"docker-manifest-digest":"{digest}"}},"identity":{{"docker-reference":"a/b"}}"#
        );
        assert_eq!(
            Payload::read(payload(&good).as_bytes(), COSIGN)
                .unwrap()
                .digest,
            digest
        );
        assert!(Payload::read(payload(&good).as_bytes(), ATOMIC).is_err());
        for bad in [
            payload(&format!("{good},\"only\":\"on mondays\"")),
            payload(&format!("{good},{good}")),
            payload(&good.replace("sha256:", "sha256:0")),
            payload(&good).replace("optional", "else"),
            "null".to_owned(),
        ] {
            assert!(Payload::read(bad.as_bytes(), COSIGN).is_err(), "{bad}");
        }
    }
}
