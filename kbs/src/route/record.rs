//! What the owner asks about what was decided: one refusal, or a page of the record.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use kbs_protocol::ErrorKind;

use super::{Answer, from, invalid, query, storage};
use crate::{
    admin::right,
    auth::Admin,
    broker::Broker,
    explain::Explained,
    record::{Entry, Search},
    refusal::Refusal,
    store::StoreError,
};

pub(super) async fn explain(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadTicket>,
    Path(ticket): Path<String>,
) -> Answer<Explained> {
    let entry = broker.store.ticket(&ticket).await.map_err(storage)?;
    let decision = entry.ok_or_else(|| {
        Refusal::new(
            ErrorKind::TicketNotFound,
            "no such ticket on the record: it is of an error and so in the broker's log, or too old",
        )
    })?;
    let attestation = match decision.attestation.as_str() {
        "" => None,
        earlier => broker.store.ticket(earlier).await.map_err(storage)?,
    };
    Ok(Json(Explained::new(decision, attestation)))
}

pub(super) async fn record(
    State(broker): State<Arc<Broker>>,
    _: Admin<right::ReadRecord>,
    search: Result<Query<Search>, QueryRejection>,
) -> Answer<Vec<Entry>> {
    let search = query(search)?;
    from(1, search.limit, "limit")?;
    broker
        .store
        .search(&search)
        .await
        .map(Json)
        .map_err(|error| match error {
            StoreError::Time => invalid(&error.to_string()),
            StoreError::Slow => Refusal::new(ErrorKind::Timeout, error.to_string()),
            error => storage(error),
        })
}
