//! A refusal on its way out: kind, text and ticket, as the protocol's JSON.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use kbs_protocol::{ErrorInformation, ErrorKind, Released};

use crate::record;

/// What a handler gives instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    kind: ErrorKind,
    body: ErrorInformation,
    retry_after: Option<u64>,
}

/// What a refusal told, left on its answer for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) kind: ErrorKind,
    pub(crate) ticket: String,
    pub(crate) detail: String,
}

impl Refusal {
    pub(crate) fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            body: ErrorInformation::new(kind, detail),
            retry_after: None,
        }
    }

    /// With the ticket of an entry of the record. Others get a ticket of their own, which is in the
    /// log.
    pub(crate) fn with_ticket(mut self, ticket: impl Into<String>) -> Self {
        self.body = self.body.with_ticket(ticket);
        self
    }

    /// The client may come again after so many seconds.
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The body, which has a ticket, and what of it is left for the log.
    fn told(mut self) -> (ErrorInformation, Told) {
        let ticket = self.body.ticket.get_or_insert_with(record::ticket).clone();
        let told = Told {
            kind: self.kind,
            ticket,
            detail: self.body.detail.clone(),
        };
        // CoCo's clients know no ticket beside the detail, and show the detail.
        if !self.body.detail.contains(&told.ticket) {
            self.body.detail = format!("{} (ticket {})", self.body.detail, told.ticket);
        }
        (self.body, told)
    }

    /// As a part of an answer that is none.
    pub(crate) fn beside(self) -> Released {
        let status = self.kind.status();
        let (error, _) = self.told();
        Released::Refused { status, error }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after;
        let (body, told) = self.told();
        let mut response = (status, Json(body)).into_response();
        response.extensions_mut().insert(told);
        if let Some(seconds) = retry_after {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
