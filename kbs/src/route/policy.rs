//! What the owner asks about policies: set, list, read, delete, history, for each scope.
//!
//! Trustee's calls are the same ones with one release policy; a path prefix behind the endpoint's name
//! is the scope of another.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use kbs_protocol::{ErrorKind, limit};
use policies::{
    PolicyError, appraisal, release,
    scopes::{Prefix, ScopeError, Selector},
};
use serde::{Deserialize, Serialize};

use super::{Answer, Body, administration, from, invalid, now, query, refreshed, storage};
use crate::{
    admin::{Administrator, right},
    auth::Admin,
    broker::Broker,
    record::{Kind, Outcome},
    refusal::Refusal,
    scope::{RELEASE_POLICY, Scope},
    store::PolicyVersion,
};

/// How Trustee's own client names the default policy: it leaves the class to the broker.
const DEFAULT_NAME: &str = "default";

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

/// Which version of a policy is read.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// 0 is what is built in.
    version: Option<i64>,
}

pub(super) async fn release_policies(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadPolicy>,
) -> Answer<Vec<String>> {
    list(&broker, &Scope::root()).await
}

pub(super) async fn appraisal_policies(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadPolicy>,
) -> Answer<Vec<String>> {
    list(&broker, &Scope::Appraisal(Selector::default())).await
}

pub(super) async fn set_root_policy(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WritePolicy>,
    mut body: Body,
) -> Result<(), Refusal> {
    set(&broker, &admin, &Scope::root(), body.json()?).await
}

pub(super) async fn set_release_policy(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WritePolicy>,
    Path(scope): Path<String>,
    mut body: Body,
) -> Result<(), Refusal> {
    set(&broker, &admin, &below(&scope)?, body.json()?).await
}

pub(super) async fn set_appraisal_policy(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WritePolicy>,
    mut body: Body,
) -> Result<(), Refusal> {
    let mut message: PolicyMessage = body.json()?;
    let scope = match message.policy_id.take().as_deref() {
        None | Some(DEFAULT_NAME) => Scope::Appraisal(Selector::default()),
        Some(id) => appraisal_scope(id)?,
    };
    set(&broker, &admin, &scope, message).await
}

pub(super) async fn release_policy(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadPolicy>,
    Path(scope): Path<String>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Answer<PolicyMessage> {
    read(&broker, &readable(&scope)?, query(wanted)?.version).await
}

pub(super) async fn appraisal_policy(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadPolicy>,
    Path(id): Path<String>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Answer<PolicyMessage> {
    read(&broker, &appraisal_scope(&id)?, query(wanted)?.version).await
}

pub(super) async fn delete_root_policy(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WritePolicy>,
) -> Result<(), Refusal> {
    delete(&broker, &admin, &Scope::root()).await
}

pub(super) async fn delete_release_policy(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WritePolicy>,
    Path(scope): Path<String>,
) -> Result<(), Refusal> {
    delete(&broker, &admin, &below(&scope)?).await
}

pub(super) async fn delete_appraisal_policy(
    State(broker): State<Arc<Broker>>,
    admin: Admin<right::WritePolicy>,
    Path(id): Path<String>,
) -> Result<(), Refusal> {
    delete(&broker, &admin, &appraisal_scope(&id)?).await
}

pub(super) async fn release_history(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadPolicy>,
    Path(scope): Path<String>,
) -> Answer<Vec<PolicyVersion>> {
    history(&broker, &readable(&scope)?).await
}

pub(super) async fn appraisal_history(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadPolicy>,
    Path(id): Path<String>,
) -> Answer<Vec<PolicyVersion>> {
    history(&broker, &appraisal_scope(&id)?).await
}

/// The scope of a path prefix. One prefix is no scope, since it would be taken for the policy of all
/// paths.
fn below(scope: &str) -> Result<Scope, Refusal> {
    if scope == RELEASE_POLICY {
        return Err(invalid(&format!(
            "`{RELEASE_POLICY}` is the policy of all paths: change that one without a scope, or \
             attach to `{RELEASE_POLICY}/<type>`"
        )));
    }
    scope.parse().map(Scope::Release).map_err(no_scope)
}

/// The same where the policy of all paths is read by its id.
fn readable(scope: &str) -> Result<Scope, Refusal> {
    if scope == RELEASE_POLICY {
        return Ok(Scope::root());
    }
    below(scope)
}

fn appraisal_scope(id: &str) -> Result<Scope, Refusal> {
    id.parse().map(Scope::Appraisal).map_err(no_scope)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` calls")]
fn no_scope(error: ScopeError) -> Refusal {
    invalid(&error.to_string())
}

async fn list(broker: &Broker, root: &Scope) -> Answer<Vec<String>> {
    broker.rules.refresh().await.map_err(storage)?;
    Ok(Json(broker.rules.ids(root)))
}

async fn set(
    broker: &Broker,
    admin: &Administrator,
    scope: &Scope,
    message: PolicyMessage,
) -> Result<(), Refusal> {
    let id = scope.to_string();
    if message.policy_id.is_some_and(|named| named != id) {
        return Err(invalid(&format!(
            "policy_id: this is the address of `{id}`"
        )));
    }
    let rego = policy_text(&message.policy)?;
    let tried = broker.rules.try_out(scope, &rego).await;
    tried.map_err(|error| unusable(&error))?;
    let entry = administration(Kind::Policy, Outcome::Set, admin, id.clone());
    let version = broker.store.set_policy(&id, &rego, now(), &entry).await;
    let version = version.map_err(storage)?;
    refreshed(broker).await?;
    tracing::info!(role = admin.role, id, version, "policy set");
    Ok(())
}

async fn read(broker: &Broker, scope: &Scope, version: Option<i64>) -> Answer<PolicyMessage> {
    let id = scope.to_string();
    from(0, version, "version")?;
    let stored = match version {
        Some(0) => None,
        version => broker.store.policy(&id, version).await.map_err(storage)?,
    };
    let built_in = match scope {
        _ if version.is_some_and(|number| number != 0) => None,
        Scope::Release(prefix) => (*prefix == Prefix::default()).then_some(release::DEFAULT),
        Scope::Appraisal(name) => name.is_default().then_some(appraisal::DEFAULT),
    };
    let rego = stored.or_else(|| built_in.map(ToOwned::to_owned));
    let rego = rego.ok_or_else(|| absent(&id))?;
    Ok(Json(PolicyMessage {
        policy: BASE64_URL_SAFE_NO_PAD.encode(rego),
        policy_id: Some(id),
        kind: Some("rego".to_owned()),
    }))
}

async fn delete(broker: &Broker, admin: &Administrator, scope: &Scope) -> Result<(), Refusal> {
    let id = scope.to_string();
    let entry = administration(Kind::Policy, Outcome::Deleted, admin, id.clone());
    let deleted = broker.store.delete_policy(&id, now(), &entry).await;
    if !deleted.map_err(storage)? {
        return Err(absent(&id));
    }
    refreshed(broker).await?;
    tracing::info!(role = admin.role, id, "policy deleted");
    Ok(())
}

async fn history(broker: &Broker, scope: &Scope) -> Answer<Vec<PolicyVersion>> {
    let history = broker.store.policy_history(&scope.to_string()).await;
    history.map(Json).map_err(storage)
}

fn absent(id: &str) -> Refusal {
    Refusal::new(
        ErrorKind::ResourceNotFound,
        format!("there is no policy `{id}` of that version: `kbs policy list` and `history` tell"),
    )
}

fn policy_text(policy: &str) -> Result<String, Refusal> {
    let bytes = BASE64_URL_SAFE_NO_PAD
        .decode(policy)
        .map_err(|_| invalid("policy: not base64url without padding"))?;
    if bytes.len() > limit::POLICY_BYTES {
        return Err(Refusal::new(
            ErrorKind::PayloadTooLarge,
            format!("policy: larger than {} bytes", limit::POLICY_BYTES),
        ));
    }
    // PostgreSQL keeps no zero in a text.
    if bytes.contains(&0) {
        return Err(invalid("policy: it has a zero byte: write it without"));
    }
    String::from_utf8(bytes).map_err(|_| invalid("policy: not UTF-8"))
}

fn unusable(error: &PolicyError) -> Refusal {
    let kind = match error {
        PolicyError::Busy => ErrorKind::NotReady,
        _ => ErrorKind::ParsePolicyError,
    };
    Refusal::new(kind, error.to_string())
}
