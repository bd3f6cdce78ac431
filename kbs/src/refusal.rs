//! A refusal on its way out: kind, text and perhaps a ticket, as the protocol's JSON.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use kbs_protocol::{ErrorInformation, ErrorKind};

/// What a handler gives instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    kind: ErrorKind,
    body: ErrorInformation,
}

impl Refusal {
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            body: ErrorInformation::new(kind, detail),
        }
    }

    pub(crate) fn with_ticket(mut self, ticket: impl Into<String>) -> Self {
        self.body = self.body.with_ticket(ticket);
        self
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        tracing::info!(
            kind = self.kind.name(),
            ticket = self.body.ticket.as_deref(),
            "refused"
        );
        (status, Json(self.body)).into_response()
    }
}
