//! What the owner asks: resources, policies, reference values, and why something was refused.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use kbs_protocol::{ErrorKind, limit};
use policies::{
    PolicyError,
    appraisal::{self, AppraisalPolicy},
    release::{self, ReleasePolicy},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Body, from_json, guest::resource_path, whole};
use crate::{
    admin::{Administrator, right},
    auth::Admin,
    broker::{APPRAISAL_POLICY, Broker, RELEASE_POLICY},
    denial::Denial,
    record::{Entry, Kind, Outcome, Search},
    refusal::Refusal,
    session::seconds,
    store::{KeyStatus, Metadata, StoreError},
};

/// Reference values in one message.
const REFERENCE_VALUES: usize = 4096;

/// A policy on the wire, as Trustee has it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PolicyMessage {
    /// Base64url of the Rego text.
    pub(crate) policy: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) policy_id: Option<String>,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ReferenceMessage {
    version: String,
    #[serde(rename = "type")]
    kind: String,
    payload: String,
}

type Answer<T> = Result<Json<T>, Refusal>;

pub(super) async fn set_resource(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WriteResource>,
    Path((repository, kind, tag)): Path<(String, String, String)>,
    body: Body,
) -> Result<(), Refusal> {
    let path = resource_path(&repository, &kind, &tag)?;
    let secret = whole(body)?;
    let entry = administration(Kind::Resource, Outcome::Set, &admin, path.to_string());
    broker
        .store
        .set_resource(&path, &secret, now(), &entry)
        .await
        .map_err(storage)?;
    tracing::info!(role = admin.role, %path, "resource set");
    Ok(())
}

pub(super) async fn delete_resource(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::DeleteResource>,
    Path((repository, kind, tag)): Path<(String, String, String)>,
) -> Result<(), Refusal> {
    let path = resource_path(&repository, &kind, &tag)?;
    let entry = administration(Kind::Resource, Outcome::Deleted, &admin, path.to_string());
    let deleted = broker.store.delete_resource(&path, now(), &entry).await;
    if !deleted.map_err(storage)? {
        return Err(Refusal::new(
            ErrorKind::ResourceNotFound,
            "there is no such resource",
        ));
    }
    tracing::info!(role = admin.role, %path, "resource deleted");
    Ok(())
}

pub(super) async fn list_resources(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::ReadMetadata>,
) -> Answer<Vec<Metadata>> {
    let mut all = broker.store.list_resources().await.map_err(storage)?;
    all.retain(|one| admin.may_with(&one.path));
    Ok(Json(all))
}

pub(super) async fn release_policies(_: Admin<right::ReadPolicy>) -> Json<[&'static str; 1]> {
    Json([RELEASE_POLICY])
}

pub(super) async fn set_release_policy(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WritePolicy>,
    body: Body,
) -> Result<(), Refusal> {
    let rego = policy_text(&from_json(body)?)?;
    ReleasePolicy::from_rego(&rego).map_err(|error| unusable(&error))?;
    store_policy(&broker, &admin, RELEASE_POLICY, &rego).await?;
    tracing::info!(role = admin.role, "release policy set");
    Ok(())
}

pub(super) async fn set_appraisal_policy(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WritePolicy>,
    body: Body,
) -> Result<(), Refusal> {
    let message: PolicyMessage = from_json(body)?;
    // Trustee's own client leaves the class out or writes it behind the name.
    if !matches!(
        message.policy_id.as_deref(),
        None | Some("default" | APPRAISAL_POLICY)
    ) {
        return Err(Refusal::new(
            ErrorKind::InvalidRequest,
            format!("policy_id: this broker appraises by `{APPRAISAL_POLICY}` only"),
        ));
    }
    let rego = policy_text(&message)?;
    AppraisalPolicy::from_rego(&rego).map_err(|error| unusable(&error))?;
    store_policy(&broker, &admin, APPRAISAL_POLICY, &rego).await?;
    tracing::info!(role = admin.role, "appraisal policy set");
    Ok(())
}

pub(super) async fn policy(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadPolicy>,
    Path(id): Path<String>,
) -> Answer<PolicyMessage> {
    let built_in = match id.as_str() {
        RELEASE_POLICY => release::DEFAULT,
        APPRAISAL_POLICY => appraisal::DEFAULT,
        _ => {
            return Err(Refusal::new(
                ErrorKind::ResourceNotFound,
                format!("no such policy: there are `{RELEASE_POLICY}` and `{APPRAISAL_POLICY}`"),
            ));
        }
    };
    let stored = broker.store.policy(&id).await.map_err(storage)?;
    Ok(Json(PolicyMessage {
        policy: BASE64_URL_SAFE_NO_PAD.encode(stored.as_ref().map_or(built_in, |(_, rego)| rego)),
        policy_id: Some(id),
        kind: Some("rego".to_owned()),
    }))
}

pub(super) async fn set_reference_values(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WriteReference>,
    body: Body,
) -> Result<(), Refusal> {
    let message: ReferenceMessage = from_json(body)?;
    if message.version != "0.1.0" {
        return Err(invalid("version: write `0.1.0`"));
    }
    if message.kind != "sample" {
        return Err(Refusal::new(
            ErrorKind::NotImplemented,
            "type: this broker reads `sample` only: a JSON map from name to value in base64",
        ));
    }
    let values: Map<String, Value> = BASE64_STANDARD
        .decode(message.payload)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or_else(|| invalid("payload: not a JSON map in base64"))?;
    if values.len() > REFERENCE_VALUES {
        return Err(invalid("payload: too many values"));
    }
    let names: Vec<&str> = values.keys().map(String::as_str).collect();
    let names = names.join(" ");
    let entry = administration(Kind::Reference, Outcome::Set, &admin, names);
    broker
        .store
        .set_reference_values(&values, now(), &entry)
        .await
        .map_err(storage)?;
    refreshed(&broker).await?;
    tracing::info!(
        role = admin.role,
        count = values.len(),
        "reference values set"
    );
    Ok(())
}

pub(super) async fn reference_value(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadReference>,
    Path(id): Path<String>,
) -> Answer<Value> {
    let found = broker.rules.load().references.get(&id).cloned();
    found.map(Json).ok_or_else(|| {
        Refusal::new(
            ErrorKind::ResourceNotFound,
            "there is no such reference value",
        )
    })
}

pub(super) async fn explain(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadTicket>,
    Path(ticket): Path<String>,
) -> Answer<Denial> {
    let entry = broker.store.ticket(&ticket).await.map_err(storage)?;
    entry.map(|entry| Json(entry.into())).ok_or_else(|| {
        Refusal::new(
            ErrorKind::TicketNotFound,
            "no such ticket on the record: it is of an error and so in the broker's log, or too old",
        )
    })
}

pub(super) async fn record(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadRecord>,
    search: Result<Query<Search>, QueryRejection>,
) -> Answer<Vec<Entry>> {
    let Query(search) = search.map_err(|error| invalid(&error.body_text()))?;
    broker
        .store
        .search(&search)
        .await
        .map(Json)
        .map_err(|error| match error {
            StoreError::Time => invalid(&error.to_string()),
            error => storage(error),
        })
}

pub(super) async fn resource_history(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadMetadata>,
    Path((repository, kind, tag)): Path<(String, String, String)>,
) -> Answer<Vec<Metadata>> {
    let path = resource_path(&repository, &kind, &tag)?;
    let versions = broker.store.resource_history(&path).await;
    versions.map(Json).map_err(storage)
}

pub(super) async fn key_status(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadKey>,
) -> Answer<KeyStatus> {
    broker.store.key_status().await.map(Json).map_err(storage)
}

/// The cause goes to the log, not to the client.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` calls")]
pub(super) fn storage(error: StoreError) -> Refusal {
    tracing::error!(%error, "the store failed");
    Refusal::new(
        ErrorKind::StorageError,
        "the store failed: see the broker's log",
    )
}

async fn store_policy(
    broker: &Broker,
    admin: &Administrator,
    id: &str,
    rego: &str,
) -> Result<(), Refusal> {
    let entry = administration(Kind::Policy, Outcome::Set, admin, id.to_owned());
    let stored = broker.store.set_policy(id, rego, now(), &entry).await;
    stored.map_err(storage)?;
    refreshed(broker).await
}

/// What was changed here is decided by here at once.
async fn refreshed(broker: &Broker) -> Result<(), Refusal> {
    broker.refresh().await.map_err(|error| {
        tracing::error!(%error, "a change was kept and cannot be read back");
        Refusal::new(
            ErrorKind::StorageError,
            "the change was kept and cannot be read back: see the broker's log",
        )
    })
}

fn administration(kind: Kind, result: Outcome, admin: &Administrator, about: String) -> Entry {
    Entry::new(kind, result, admin.who(), about)
}

fn policy_text(message: &PolicyMessage) -> Result<String, Refusal> {
    let bytes = BASE64_URL_SAFE_NO_PAD
        .decode(&message.policy)
        .map_err(|_| invalid("policy: not base64url without padding"))?;
    if bytes.len() > limit::POLICY_BYTES {
        return Err(Refusal::new(
            ErrorKind::PayloadTooLarge,
            format!("policy: larger than {} bytes", limit::POLICY_BYTES),
        ));
    }
    String::from_utf8(bytes).map_err(|_| invalid("policy: not UTF-8"))
}

fn unusable(error: &PolicyError) -> Refusal {
    Refusal::new(ErrorKind::ParsePolicyError, error.to_string())
}

fn invalid(detail: &str) -> Refusal {
    Refusal::new(ErrorKind::InvalidRequest, detail)
}

fn now() -> i64 {
    i64::try_from(seconds(SystemTime::now())).unwrap_or(i64::MAX)
}
