//! What an owner asks of whoever opens a sealed secret: Cloister's annotations of a payload.

use std::collections::BTreeMap;
use std::time::Duration;

use evidence::init_data::InitDataDigest;
use serde_json::Value;

use super::{SealedError, shown};

/// What all of them begin with. Other annotations are for key services, and say nothing to us.
const OURS: &str = "cloister.";
pub(super) const NAME: &str = "cloister.name";
pub(super) const INIT_DATA: &str = "cloister.init-data";
pub(super) const LEASE: &str = "cloister.lease-seconds";
/// The shortest lease: what is fetched more often is a stream.
const SHORTEST_SECONDS: u64 = 5;
/// The longest lease.
const LONGEST_SECONDS: u64 = 366 * 24 * 3600;

/// The owner's conditions; none where there are none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Terms {
    /// The one environment variable, or the one file by its path in the volume, that may hold the secret. So a
    /// host cannot give one of the owner's secrets in the place of another.
    pub name: Option<String>,
    /// `<algorithm>:<hex>` of the init-data that the pod must have been launched with.
    pub init_data: Option<String>,
    /// How long the secret may be used before the broker has to be asked again.
    pub lease: Option<Duration>,
}

impl Terms {
    pub(super) fn of_annotations(
        annotations: &serde_json::Map<String, Value>,
    ) -> Result<Self, SealedError> {
        let mut terms = Self::default();
        for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with(OURS)) {
            let bad = |fix| SealedError::Unsupported {
                member: "annotation",
                found: shown(key),
                fix,
            };
            let text = || value.as_str().filter(|text| !text.is_empty());
            match key.as_str() {
                NAME => terms.name = Some(text().ok_or_else(|| bad("a name"))?.to_owned()),
                INIT_DATA => {
                    let digest = text().filter(|text| text.contains(':'));
                    let digest = digest.ok_or_else(|| bad("`<algorithm>:<hex digest>`"))?;
                    terms.init_data = Some(digest.to_owned());
                }
                LEASE => {
                    let seconds = value.as_u64().or_else(|| text()?.parse().ok());
                    let seconds =
                        seconds.filter(|n| (SHORTEST_SECONDS..=LONGEST_SECONDS).contains(n));
                    let seconds = seconds.ok_or_else(|| bad("5 to 31622400 seconds"))?;
                    terms.lease = Some(Duration::from_secs(seconds));
                }
                _ => {
                    return Err(bad(
                        "`cloister.name`, `cloister.init-data` or `cloister.lease-seconds`",
                    ));
                }
            }
        }
        Ok(terms)
    }

    pub(super) fn to_annotations(&self) -> BTreeMap<&'static str, Value> {
        let mut annotations = BTreeMap::new();
        if let Some(name) = &self.name {
            annotations.insert(NAME, name.clone().into());
        }
        if let Some(digest) = &self.init_data {
            annotations.insert(INIT_DATA, digest.clone().into());
        }
        if let Some(lease) = self.lease {
            annotations.insert(LEASE, lease.as_secs().into());
        }
        annotations
    }

    /// Whether this pod may have the secret, for the place `name`; none where a program asks for it.
    ///
    /// # Errors
    /// The condition that does not hold.
    pub fn check(
        &self,
        name: Option<&str>,
        init_data: Option<&InitDataDigest>,
    ) -> Result<(), SealedError> {
        if let Some(bound) = &self.name
            && name != Some(bound.as_str())
        {
            return Err(SealedError::OtherName(shown(bound)));
        }
        if let Some(bound) = &self.init_data {
            let ours = init_data.map(ToString::to_string);
            if ours.as_ref() != Some(bound) {
                return Err(SealedError::OtherPod);
            }
        }
        Ok(())
    }
}
