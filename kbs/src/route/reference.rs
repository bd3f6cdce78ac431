//! What the owner asks about reference values: set, add, list, read, withdraw, history.
//!
//! The message is Trustee's, with three members more: from when, until when, and whether what a name
//! has already stays beside it.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use kbs_protocol::ErrorKind;
use policies::reference::{Provenance, ReferenceError, ReferenceValue, Version};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use super::{Answer, Body, administration, from, invalid, now, query, refreshed, storage};
use crate::{
    admin::{Administrator, right},
    auth::Admin,
    broker::Broker,
    record::{Kind, Outcome, millis},
    refusal::Refusal,
    store::{Mode, Page, ReferenceVersion},
};

/// Names in one JSON map.
const REFERENCE_VALUES: usize = 4096;
/// Characters of a name in a refusal.
const NAME_SHOWN: usize = 128;
/// The version of Trustee's message.
pub(crate) const MESSAGE_VERSION: &str = "0.1.0";
/// A JSON map from name to value.
pub(crate) const SAMPLE: &str = "sample";
/// A CoRIM in CBOR.
pub(crate) const CORIM: &str = "corim";

/// Reference values on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReferenceMessage {
    pub(crate) version: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Base64 of the document.
    pub(crate) payload: String,
    /// In RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) not_before: Option<String>,
    /// In RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) not_after: Option<String>,
    #[serde(default)]
    pub(crate) mode: Mode,
    /// Take a document that nobody signed.
    #[serde(default)]
    pub(crate) accept_unsigned: bool,
}

/// Which values of a name are withdrawn.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    version: Option<i64>,
}

pub(super) async fn set_values(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WriteReference>,
    mut body: Body,
) -> Result<(), Refusal> {
    let message: ReferenceMessage = body.json()?;
    if message.version != MESSAGE_VERSION {
        return Err(invalid(&format!("version: write `{MESSAGE_VERSION}`")));
    }
    let not_before = time(message.not_before.as_deref(), "not_before")?;
    let not_after = time(message.not_after.as_deref(), "not_after")?;
    let mut values = document(&broker, &message, &admin)?;
    for value in &mut values {
        for version in std::mem::take(&mut value.versions) {
            let added = value.add(version.within(not_before, not_after));
            added.map_err(|error| unusable(&value.name, &error))?;
        }
    }
    let entry = administration(Kind::Reference, Outcome::Set, &admin, String::new());
    let set = broker
        .store
        .set_reference_values(&values, message.mode, now(), &entry)
        .await;
    let version = set.map_err(storage)?;
    refreshed(&broker).await?;
    let (role, count) = (&admin.role, values.len());
    tracing::info!(role, count, version, mode = ?message.mode, "reference values set");
    Ok(())
}

pub(super) async fn values(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadReference>,
    page: Result<Query<Page>, QueryRejection>,
) -> Answer<Vec<ReferenceVersion>> {
    let page = query(page)?;
    let list = broker
        .store
        .list_reference_values(&page, SystemTime::now())
        .await;
    list.map(Json).map_err(storage)
}

/// What policies see of a name now, as Trustee answers.
pub(super) async fn value(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadReference>,
    Path(name): Path<String>,
) -> Answer<Value> {
    let (values, _) = broker.rules.references(SystemTime::now());
    values.get(&name).cloned().map(Json).ok_or_else(absent)
}

pub(super) async fn withdraw(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WriteReference>,
    Path(name): Path<String>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<(), Refusal> {
    let version = query(wanted)?.version;
    from(1, version, "version")?;
    let entry = administration(Kind::Reference, Outcome::Deleted, &admin, String::new());
    let ended = broker
        .store
        .withdraw_reference_value(&name, version, now(), &entry)
        .await;
    let ended = ended.map_err(storage)?;
    if ended == 0 {
        return Err(absent());
    }
    refreshed(&broker).await?;
    tracing::info!(role = admin.role, name, ended, "reference values withdrawn");
    Ok(())
}

pub(super) async fn history(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadReference>,
    Path(name): Path<String>,
) -> Answer<Vec<ReferenceVersion>> {
    let history = broker
        .store
        .reference_history(&name, SystemTime::now())
        .await;
    history.map(Json).map_err(storage)
}

/// The values in a message, before its own window is laid over theirs.
fn document(
    broker: &Broker,
    message: &ReferenceMessage,
    admin: &Administrator,
) -> Result<Vec<ReferenceValue>, Refusal> {
    let payload = BASE64_STANDARD
        .decode(&message.payload)
        .map_err(|_| invalid("payload: not base64"))?;
    match message.kind.as_str() {
        SAMPLE => sample(&payload, admin),
        CORIM => broker
            .signers
            .reference_values(&payload, &admin.role, message.accept_unsigned)
            .map_err(|error| invalid(&format!("payload: {error}"))),
        _ => Err(Refusal::new(
            ErrorKind::NotImplemented,
            format!(
                "type: this broker reads `{SAMPLE}` (a JSON map from name to value) and `{CORIM}`"
            ),
        )),
    }
}

fn sample(payload: &[u8], admin: &Administrator) -> Result<Vec<ReferenceValue>, Refusal> {
    let Once(values) = serde_json::from_slice(payload).map_err(|error| {
        invalid(&format!(
            "payload: not a JSON map from name to value: {error}"
        ))
    })?;
    if values.is_empty() || values.len() > REFERENCE_VALUES {
        return Err(invalid(&format!(
            "payload: write 1 to {REFERENCE_VALUES} values"
        )));
    }
    let one = |(name, value): (String, Value)| {
        let mut known = ReferenceValue::new(&name)?;
        known.add(Version {
            value,
            provenance: Provenance::Administrator(admin.role.clone()),
            not_before: None,
            not_after: None,
        })?;
        Ok(known)
    };
    let all: Result<_, ReferenceError> = values.into_iter().map(one).collect();
    all.map_err(|error| invalid(&format!("payload: {error}")))
}

/// A map that has each name once: of two values, which one is meant cannot be known.
struct Once(Map<String, Value>);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(OnceVisitor)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Once;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name and its value, each name once")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Once, A::Error> {
        let mut values = Map::new();
        while let Some((name, value)) = access.next_entry::<String, Value>()? {
            if values.contains_key(&name) {
                let name: String = name.chars().take(NAME_SHOWN).collect();
                return Err(A::Error::custom(format!("{name:?} is there twice")));
            }
            values.insert(name, value);
        }
        Ok(Once(values))
    }
}

fn time(text: Option<&str>, member: &str) -> Result<Option<SystemTime>, Refusal> {
    let wrong = || {
        invalid(&format!(
            "{member}: not a time in RFC 3339 from 1970 on, such as 2030-01-31T12:00:00Z"
        ))
    };
    let Some(text) = text else { return Ok(None) };
    let since = millis(text).and_then(|millis| u64::try_from(millis).ok());
    let since = Duration::from_millis(since.ok_or_else(wrong)?);
    UNIX_EPOCH.checked_add(since).map(Some).ok_or_else(wrong)
}

fn unusable(name: &str, error: &ReferenceError) -> Refusal {
    invalid(&format!("`{name}`: {error}"))
}

fn absent() -> Refusal {
    Refusal::new(
        ErrorKind::ResourceNotFound,
        "there is no such reference value",
    )
}
