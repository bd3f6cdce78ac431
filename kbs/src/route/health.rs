//! What those ask who keep a broker running: is it alive, is it ready, what does it count.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};

use kbs_protocol::ErrorKind;

use crate::{auth::Anyone, broker::Broker, metrics::CONTENT_TYPE, refusal::Refusal};

/// The process runs and answers.
pub(super) async fn healthz(_: Anyone) {}

/// It can judge and release: one reason a line where it cannot.
pub(super) async fn readyz(State(broker): State<Arc<Broker>>, _: Anyone) -> Response {
    let mut missing = broker.missing().await;
    if !broker.store.is_writable().await {
        missing.push("the store cannot be written");
    }
    if broker.rules.desk.is_stuck() {
        missing.push("too many policies do not come to an end: the record names them");
    }
    if missing.is_empty() {
        return StatusCode::OK.into_response();
    }
    tracing::warn!(?missing, "not ready");
    Refusal::new(ErrorKind::NotReady, missing.join("; ")).into_response()
}

/// What is served, for programs that make clients and tests of it.
pub(super) async fn openapi(_: Anyone) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document()).into_response()
}

/// The OpenAPI document. It is kept by hand, and a test holds it to the routes.
pub(crate) fn document() -> String {
    const TEXT: &str = include_str!("openapi.json");
    let version = concat!("\"version\": \"", env!("CARGO_PKG_VERSION"), "\"");
    TEXT.replacen("\"version\": \"0\"", version, 1)
}

async fn metrics(State(broker): State<Arc<Broker>>) -> Response {
    let text = broker.metrics.text(&broker.store.figures());
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

/// What the separate port serves, which is for the operator's network.
pub(crate) fn monitor(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(broker)
}
