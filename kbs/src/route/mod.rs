//! The paths, each with its methods, its cap on the body, and what every answer has in common.
//!
//! A handler takes one of [`Anyone`](crate::auth::Anyone), [`Admin`](crate::auth::Admin) and
//! [`Attested`](crate::auth::Attested); there is none without.

mod guest;
mod health;
mod observe;
mod owner;

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, OriginalUri, rejection::BytesRejection},
    middleware,
    routing::{get, post},
};
use bytes::Bytes;
use kbs_protocol::{ErrorKind, PREFIX, limit};
use serde::de::DeserializeOwned;

pub(crate) use health::{document, monitor};
pub(crate) use observe::Peer;
pub(crate) use owner::PolicyMessage;

use crate::{broker::Broker, refusal::Refusal};

/// A policy in base64 within JSON.
const POLICY_BODY_BYTES: usize = limit::POLICY_BYTES / 3 * 4 + 4096;

/// Everything that the broker serves.
pub(crate) fn router(broker: Arc<Broker>) -> Router {
    let capped = |bytes| DefaultBodyLimit::max(bytes);
    let limited = middleware::from_fn_with_state(Arc::clone(&broker), observe::limit);
    let guest = Router::new()
        .route(
            "/auth",
            post(guest::auth)
                .layer::<_, Infallible>(limited.clone())
                .layer(capped(limit::AUTH_BODY_BYTES)),
        )
        .route(
            "/attest",
            post(guest::attest)
                .layer::<_, Infallible>(limited)
                .layer(capped(limit::ATTEST_BODY_BYTES)),
        )
        .route(
            "/resource/{repository}/{kind}/{tag}",
            get(guest::resource)
                .post(owner::set_resource)
                .delete(owner::delete_resource)
                .layer(capped(limit::RESOURCE_BYTES)),
        );
    let owner = Router::new()
        .route("/resource", get(owner::list_resources))
        .route(
            "/resource-policy",
            get(owner::release_policies).post(owner::set_release_policy),
        )
        .route("/resource-policy/{id}", get(owner::policy))
        .route("/attestation-policy", post(owner::set_appraisal_policy))
        .route("/attestation-policy/{id}", get(owner::policy))
        .route("/reference-value", post(owner::set_reference_values))
        .route("/reference-value/{*id}", get(owner::reference_value))
        .route("/explain/{ticket}", get(owner::explain))
        .route("/record", get(owner::record))
        .route(
            "/resource-history/{repository}/{kind}/{tag}",
            get(owner::resource_history),
        )
        .route("/key", get(owner::key_status))
        .layer(capped(POLICY_BODY_BYTES));
    Router::new()
        .nest(PREFIX, guest.merge(owner))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/openapi.json", get(health::openapi))
        .route("/.well-known/jwks.json", get(guest::jwks))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(middleware::from_fn_with_state(
            Arc::clone(&broker),
            observe::observe,
        ))
        .with_state(broker)
}

/// A body as it came, or why there is none.
pub(crate) type Body = Result<Bytes, BytesRejection>;

pub(crate) fn whole(body: Body) -> Result<Bytes, Refusal> {
    body.map_err(|rejection| {
        if rejection.status() == http::StatusCode::PAYLOAD_TOO_LARGE {
            return Refusal::new(
                ErrorKind::PayloadTooLarge,
                "the body is larger than this endpoint takes",
            );
        }
        Refusal::new(ErrorKind::InvalidRequest, "the body could not be read")
    })
}

pub(crate) fn from_json<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    serde_json::from_slice(&whole(body)?).map_err(|error| {
        // The text of the error may quote the body; its place does not.
        let place = format!("line {}, column {}", error.line(), error.column());
        let form = match error.classify() {
            serde_json::error::Category::Data => "has not the members of this endpoint",
            serde_json::error::Category::Io
            | serde_json::error::Category::Syntax
            | serde_json::error::Category::Eof => "is not JSON",
        };
        Refusal::new(
            ErrorKind::InvalidRequest,
            format!("the body {form}: {place}"),
        )
    })
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
