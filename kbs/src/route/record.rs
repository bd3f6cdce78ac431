//! What the owner asks about what was decided: one refusal, or a page of the record.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use kbs_protocol::ErrorKind;

use super::{Answer, invalid, query, storage};
use crate::{
    auth::Admin,
    broker::Broker,
    denial::Denial,
    record::{Entry, Search},
    refusal::Refusal,
    store::StoreError,
};

pub(super) async fn explain(
    State(broker): State<Arc<Broker>>,
    _: Admin,
    Path(ticket): Path<String>,
) -> Answer<Denial> {
    let entry = broker.store.ticket(&ticket).await.map_err(storage)?;
    entry.map(|entry| Json(entry.into())).ok_or_else(|| {
        Refusal::new(
            ErrorKind::TicketNotFound,
            "no such ticket, or it is older than the record goes",
        )
    })
}

pub(super) async fn record(
    State(broker): State<Arc<Broker>>,
    _: Admin,
    search: Result<Query<Search>, QueryRejection>,
) -> Answer<Vec<Entry>> {
    let search = query(search)?;
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
