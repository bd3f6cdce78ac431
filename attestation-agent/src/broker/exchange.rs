//! One request and its answer, with caps, and what each status means.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request,
    header::{ACCEPT, CONTENT_TYPE},
};
use kbs_protocol::{ErrorInformation, ErrorKind, PREFIX, limit::ERROR_BODY_BYTES};
use serde::de::DeserializeOwned;
use transport::{Client, bytes_capped};

use super::{
    BrokerError, Detail, Step,
    retry::{Patience, Transient},
};

/// W3C's header for the span that asks.
const TRACEPARENT: &str = "traceparent";
/// Characters of a foreign text that are kept with an error.
const SHOWN_CHARS: usize = 256;
/// Characters of a ticket.
const TICKET_CHARS: usize = 64;

/// Speaks to one broker.
pub(super) struct Exchange {
    client: Client,
    base: String,
    /// By the work that they are of, in the order in which it began.
    traces: Mutex<BTreeMap<u64, Spans>>,
}

/// The callers' spans, for the header.
struct Spans {
    attest: HeaderValue,
    resource: HeaderValue,
}

/// Work that is traced: its requests name its spans for as long as this is there.
#[must_use = "nothing is traced when it is dropped"]
pub struct Traced<'a> {
    exchange: &'a Exchange,
    /// Under which its spans are kept; none where they are no headers.
    number: Option<u64>,
}

impl Drop for Traced<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.exchange.traces().remove(&number);
        }
    }
}

impl std::fmt::Debug for Traced<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Traced").field(&self.number).finish()
    }
}

/// An answer of status 200.
pub(super) struct Answer {
    step: Step,
    pub(super) headers: HeaderMap,
    body: Bytes,
}

/// An answer of another status.
pub(super) struct Refusal {
    pub(super) step: Step,
    pub(super) status: u16,
    pub(super) information: Option<ErrorInformation>,
    text: String,
}

/// Why a request has no answer of status 200.
pub(super) enum Failure {
    /// The broker said no.
    Refusal(Refusal),
    /// The broker did not say.
    Error(BrokerError),
}

impl Exchange {
    pub(super) fn new(client: Client, base: String) -> Self {
        Self {
            client,
            base,
            traces: Mutex::default(),
        }
    }

    /// Whose spans requests are below, until what is returned is dropped.
    pub(super) fn trace(&self, attest: &str, resource: &str) -> Traced<'_> {
        let header = |text| HeaderValue::from_str(text).ok();
        let spans = header(attest).zip(header(resource));
        let mut traces = self.traces();
        let number = spans.map(|(attest, resource)| {
            let number = traces.last_key_value().map_or(0, |(last, _)| last + 1);
            traces.insert(number, Spans { attest, resource });
            number
        });
        drop(traces);
        Traced {
            exchange: self,
            number,
        }
    }

    fn traces(&self) -> MutexGuard<'_, BTreeMap<u64, Spans>> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn span(&self, step: Step) -> Option<HeaderValue> {
        let traces = self.traces();
        let (_, spans) = traces.last_key_value()?;
        Some(match step {
            Step::Resource => spans.resource.clone(),
            _ => spans.attest.clone(),
        })
    }

    /// Sends JSON to an endpoint.
    pub(super) async fn post(
        &self,
        step: Step,
        path: &str,
        cookie: Option<HeaderValue>,
        body: Vec<u8>,
        cap: usize,
    ) -> Result<Answer, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(cookie) = cookie {
            headers.insert(http::header::COOKIE, cookie);
        }
        let request = self.request(Method::POST, path, headers, body.into());
        self.send(step, request, cap).await
    }

    /// Asks for something with a token.
    pub(super) async fn get(
        &self,
        step: Step,
        path: &str,
        bearer: HeaderValue,
        cap: usize,
    ) -> Result<Answer, Failure> {
        let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, bearer)]);
        let request = self.request(Method::GET, path, headers, Bytes::new());
        self.send(step, request, cap).await
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Request<Bytes>, http::Error> {
        let url = format!("{}{PREFIX}/{path}", self.base);
        let mut request = Request::builder().method(method).uri(url).body(body)?;
        *request.headers_mut() = headers;
        let any = HeaderValue::from_static("*/*");
        request.headers_mut().insert(ACCEPT, any);
        Ok(request)
    }

    async fn send(
        &self,
        step: Step,
        request: Result<Request<Bytes>, http::Error>,
        cap: usize,
    ) -> Result<Answer, Failure> {
        let mut request = request.map_err(|error| {
            Failure::Error(BrokerError::Protocol {
                step,
                cause: error.to_string(),
            })
        })?;
        if let Some(span) = self.span(step) {
            request.headers_mut().insert(TRACEPARENT, span);
        }
        let failed = |error| Failure::Error(BrokerError::of_transport(step, error));
        let (head, body) = self
            .client
            .send(request)
            .await
            .map_err(failed)?
            .into_parts();
        let status = head.status.as_u16();
        let cap = if status == 200 { cap } else { ERROR_BODY_BYTES };
        let body = bytes_capped(body, cap).await.map_err(failed)?;
        if status != 200 {
            return Err(Failure::Refusal(Refusal {
                step,
                status,
                information: serde_json::from_slice(&body).ok(),
                text: shown(&String::from_utf8_lossy(&body)),
            }));
        }
        Ok(Answer {
            step,
            headers: head.headers,
            body,
        })
    }
}

impl Answer {
    /// The body as JSON. Its content is in no error: it may be a token or a secret.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, BrokerError> {
        serde_json::from_slice(&self.body).map_err(|error| BrokerError::Protocol {
            step: self.step,
            cause: format!(
                "not the JSON of the protocol ({:?} at line {}, column {})",
                error.classify(),
                error.line(),
                error.column()
            ),
        })
    }
}

impl Refusal {
    /// One that came as a part of an answer.
    pub(super) fn beside(step: Step, status: u16, information: ErrorInformation) -> Self {
        Self {
            step,
            status,
            information: Some(information),
            text: String::new(),
        }
    }

    pub(super) fn kind(&self) -> Option<ErrorKind> {
        self.information.as_ref().and_then(ErrorInformation::kind)
    }

    /// The ticket, where it is one: a word, with which no sentence leaves the guest.
    pub(super) fn ticket(&self) -> Option<String> {
        let ticket = self.information.as_ref()?.ticket.as_deref()?;
        let is_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let is_word = (1..=TICKET_CHARS).contains(&ticket.len()) && ticket.chars().all(is_of_word);
        is_word.then(|| ticket.to_owned())
    }

    /// The broker's sentence; of a broker that does not follow the protocol, the start of its text.
    pub(super) fn detail(&self) -> Detail {
        Detail::from(match &self.information {
            Some(information) => shown(&information.detail),
            None if self.text.is_empty() => format!("status {}", self.status),
            None => self.text.clone(),
        })
    }

    /// What it is when the step gives it no meaning of its own.
    pub(super) fn into_error(self) -> BrokerError {
        let (step, status, detail) = (self.step, self.status, self.detail());
        match (self.kind(), status) {
            (Some(ErrorKind::ProtocolVersion), _) => BrokerError::Version { detail },
            // Trustee has no kind for it.
            _ if detail.expose().contains("Protocol Version Mismatch") => {
                BrokerError::Version { detail }
            }
            _ if is_busy(status) => BrokerError::Unavailable {
                step,
                status,
                detail,
            },
            _ => BrokerError::Refused {
                step,
                status,
                detail,
            },
        }
    }
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        Self::Error(error)
    }
}

impl Transient for Failure {
    fn patience(&self) -> Patience {
        match self {
            Self::Refusal(refusal) if is_busy(refusal.status) => Patience::Whole,
            Self::Refusal(_) => Patience::Final,
            Self::Error(error) => error.patience(),
        }
    }
}

impl Failure {
    pub(super) fn into_error(self) -> BrokerError {
        match self {
            Self::Refusal(refusal) => refusal.into_error(),
            Self::Error(error) => error,
        }
    }
}

/// The statuses of a server that may well answer later.
fn is_busy(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502..=504)
}

fn shown(text: &str) -> String {
    text.trim()
        .chars()
        .take(SHOWN_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
