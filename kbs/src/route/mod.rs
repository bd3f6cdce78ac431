//! The paths, each with its methods, its cap on the body, and what every answer has in common.
//!
//! A handler takes one of [`Anyone`](crate::auth::Anyone), [`Challenged`](crate::auth::Challenged),
//! [`Attested`](crate::auth::Attested) and [`Admin`](crate::auth::Admin); there is none without.

mod answer;
mod body;
mod guest;
mod health;
mod observe;
mod policy;
mod record;
mod reference;
mod release;
mod resource;
mod rest;
mod slash;

use std::{convert::Infallible, sync::Arc, time::SystemTime};

use axum::{
    Extension, Json, Router,
    extract::{OriginalUri, Query, rejection::QueryRejection},
    handler::Handler,
    middleware,
    routing::{get, post},
};
use kbs_protocol::{ErrorKind, PREFIX, limit};

pub(crate) use body::Rooms;
pub(crate) use health::{document, monitor};
pub(crate) use observe::Peer;
pub(crate) use policy::PolicyMessage;
pub(crate) use reference::{CORIM, MESSAGE_VERSION, ReferenceMessage, SAMPLE};
pub(crate) use slash::single as single_slash;

use body::{Body, Cap};

use crate::{
    admin::Administrator,
    broker::Broker,
    record::{Entry, Kind, Outcome},
    refusal::Refusal,
    session::seconds,
    store::StoreError,
};

/// A policy in base64 within JSON.
const POLICY_BODY_BYTES: usize = limit::POLICY_BYTES / 3 * 4 + 4096;

/// Everything that the broker serves. What anybody may ask is counted for each address before it is
/// looked at; what is for administrators, where it turns out that none asked.
pub(crate) fn router(broker: Arc<Broker>) -> Router {
    let capped = |bytes| Extension(Cap(bytes));
    let counted = middleware::from_fn_with_state(Arc::clone(&broker), observe::limit);
    let refused = middleware::from_fn_with_state(Arc::clone(&broker), observe::limit_refused);
    let guest = Router::new()
        .route(
            "/auth",
            post(guest::auth).layer(capped(limit::AUTH_BODY_BYTES)),
        )
        .route(
            "/attest",
            post(guest::attest).layer(capped(limit::ATTEST_BODY_BYTES)),
        )
        .route_layer(counted.clone());
    let secrets = Router::new().route(
        "/resource/{repository}/{kind}/{tag}",
        get(guest::resource)
            .head(guest::no_head)
            .layer::<_, Infallible>(counted.clone())
            .merge(
                post(resource::set_resource)
                    .delete(resource::delete_resource)
                    .layer::<_, Infallible>(refused.clone())
                    .layer(capped(limit::RESOURCE_BYTES)),
            ),
    );
    let owner = administered()
        .layer(capped(POLICY_BODY_BYTES))
        .route_layer(refused);
    let open = Router::new()
        .route("/readyz", get(health::readyz))
        .route("/openapi.json", get(health::openapi))
        .route("/.well-known/jwks.json", get(guest::jwks))
        .route_layer(counted.clone());
    Router::new()
        .nest(PREFIX, guest.merge(secrets).merge(owner))
        .merge(open)
        // It costs less than to refuse it, and a supervisor that is refused would end the process.
        .route("/healthz", get(health::healthz))
        .fallback(unknown_path.layer(counted.clone()))
        .method_not_allowed_fallback(unknown_method.layer(counted))
        .layer(middleware::from_fn_with_state(
            Arc::clone(&broker),
            observe::observe,
        ))
        .with_state(broker)
}

/// What is for administrators alone.
fn administered() -> Router<Arc<Broker>> {
    Router::new()
        .route("/resource", get(resource::list_resources))
        .route(
            "/resource-history/{repository}/{kind}/{tag}",
            get(resource::resource_history),
        )
        .route("/key", get(resource::key_status))
        .route(
            "/resource-policy",
            get(policy::release_policies)
                .post(policy::set_root_policy)
                .delete(policy::delete_root_policy),
        )
        .route(
            "/resource-policy/{*scope}",
            get(policy::release_policy)
                .post(policy::set_release_policy)
                .delete(policy::delete_release_policy),
        )
        .route(
            "/resource-policy-history/{*scope}",
            get(policy::release_history),
        )
        .route(
            "/attestation-policy",
            get(policy::appraisal_policies).post(policy::set_appraisal_policy),
        )
        .route(
            "/attestation-policy/{id}",
            get(policy::appraisal_policy).delete(policy::delete_appraisal_policy),
        )
        .route(
            "/attestation-policy-history/{id}",
            get(policy::appraisal_history),
        )
        .route(
            "/reference-value",
            get(reference::values).post(reference::set_values),
        )
        .route(
            "/reference-value/{*name}",
            get(reference::value).delete(reference::withdraw),
        )
        .route("/reference-value-history/{*name}", get(reference::history))
        .route("/explain/{ticket}", get(record::explain))
        .route("/record", get(record::record))
}

/// An answer in JSON, or a refusal.
type Answer<T> = Result<Json<T>, Refusal>;

/// A query without a member that nobody knows.
fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Refusal> {
    let Query(query) = query.map_err(|error| invalid(&error.body_text()))?;
    Ok(query)
}

/// What a failure of the store is to a client; its cause goes to the log.
fn storage(error: StoreError) -> Refusal {
    if let StoreError::Limit(text) = error {
        return invalid(&text);
    }
    if let StoreError::WentBack = error {
        tracing::error!(%error, "a change was refused");
        return Refusal::new(ErrorKind::StorageError, error.to_string());
    }
    tracing::error!(%error, "the store failed");
    Refusal::new(
        ErrorKind::StorageError,
        "the store failed: see the broker's log",
    )
}

/// What was changed here is decided by here at once.
async fn refreshed(broker: &Broker) -> Result<(), Refusal> {
    broker.rules.refresh().await.map_err(|error| {
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

fn invalid(detail: &str) -> Refusal {
    Refusal::new(ErrorKind::InvalidRequest, detail)
}

/// Refuses a number that stands for nothing, before it is taken for another one.
fn from(least: i64, number: Option<i64>, member: &str) -> Result<(), Refusal> {
    match number {
        Some(number) if number < least => Err(invalid(&format!(
            "{member}: {number} is none: they begin at {least}"
        ))),
        _ => Ok(()),
    }
}

fn now() -> i64 {
    i64::try_from(seconds(SystemTime::now())).unwrap_or(i64::MAX)
}

async fn unknown_path(OriginalUri(uri): OriginalUri) -> Refusal {
    let plugin = uri
        .path()
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_prefix('/'))
        .and_then(|rest| rest.split_once('/'))
        .map(|(plugin, _)| plugin);
    match plugin {
        Some("resource") => Refusal::new(
            ErrorKind::InvalidRequestPath,
            "a resource is named /resource/<repository>/<type>/<tag>",
        ),
        Some(_) => Refusal::new(
            ErrorKind::PluginNotFound,
            "this broker has no such plugin: it has `resource`",
        ),
        None => Refusal::new(ErrorKind::InvalidRequestPath, "no such endpoint"),
    }
}

async fn unknown_method() -> Refusal {
    Refusal::new(
        ErrorKind::MethodNotAllowed,
        "this endpoint has no such method",
    )
}
