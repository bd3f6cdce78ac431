//! What every answer has in common: a bounded time, a line of the log, a count, and where it is an
//! error, the protocol's body with a ticket that the log has too.

use std::{
    net::IpAddr,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use http::{StatusCode, Uri, header, uri::PathAndQuery};
use kbs_protocol::ErrorKind;

use super::{invalid, rest::Rest};
use crate::{
    broker::Broker,
    metrics::Answered,
    refusal::{Refusal, Told},
    telemetry::Ended,
};

/// How long an answer may take, from the head of the request to the head of the answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Who is at the other end of the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Logs each request without its query, headers or body.
pub(super) async fn observe(
    State(broker): State<Arc<Broker>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let method = request.method().clone();
    let route = path.as_ref().map(MatchedPath::as_str);
    let traces = broker.traces.as_ref();
    let span = traces.and_then(|all| all.begin(request.headers(), request.uri().path()));
    let unfit = unfit(&request);
    let (request, rest) = Rest::of(request);
    let response = match unfit {
        Some(detail) => invalid(detail).into_response(),
        None => answer(next.run(request)).await,
    };
    if let Some(rest) = rest {
        rest.discard(&broker.limiter.rooms.readers).await;
    }
    let told = response.extensions().get::<Told>();
    if told.is_some_and(|told| told.kind == ErrorKind::StorageError) {
        broker.store.failed();
    }
    let took = start.elapsed();
    broker.metrics.answered(&Answered {
        method: &method,
        route,
        status: response.status(),
        error: told.map(|told| told.kind),
        took,
    });
    if let Some((traces, span)) = traces.zip(span) {
        let ended = Ended {
            method: &method,
            route,
            status: response.status(),
            error: told.map(|told| told.kind),
            ticket: told.map(|told| told.ticket.as_str()),
        };
        traces.end(span, &ended);
    }
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                %method,
                route,
                status = response.status().as_u16(),
                micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                kind = told.map(|told| told.kind.name()),
                ticket = told.map(|told| told.ticket.as_str()),
                detail = told.map(|told| told.detail.as_str()),
                "request"
            )
        };
    }
    if is_common(route, response.status()) {
        line!(debug);
    } else {
        line!(info);
    }
    response
}

/// What anybody may have as often as they like would fill the log: what supervisors ask all the time,
/// and who asks too often, of whom another line tells the number.
fn is_common(route: Option<&str>, status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || matches!(route, Some("/healthz" | "/readyz"))
}

/// Why nobody looks at a request: what is between a client and the broker may have read it another
/// way.
fn unfit(request: &Request) -> Option<&'static str> {
    let headers = request.headers();
    let mut hosts = headers.get_all(header::HOST).iter();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next();
    if has_zero(request.uri()) {
        Some("the path or the query has a zero byte (%00), which no name and no text here has")
    } else if hosts.nth(1).is_some() {
        Some("it has `Host` twice")
    } else if codings.next().is_some()
        || coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        Some("its `Transfer-Encoding` is another than `chunked`")
    } else {
        None
    }
}

/// No name has one, and PostgreSQL keeps none in a text where SQLite does.
fn has_zero(uri: &Uri) -> bool {
    let text = uri.path_and_query().map_or("", PathAndQuery::as_str);
    text.contains("%00")
}

/// The answer, in time and whatever becomes of its handler: a panic is an answer too.
async fn answer(running: impl Future<Output = Response>) -> Response {
    let caught = AssertUnwindSafe(running).catch_unwind();
    match tokio::time::timeout(ANSWER_TIME, caught).await {
        Ok(Ok(response)) => with_body(response),
        Ok(Err(_)) => Refusal::new(
            ErrorKind::Internal,
            "a defect of the broker: its log has more under this ticket",
        )
        .into_response(),
        Err(_) => {
            Refusal::new(ErrorKind::Timeout, "no answer in time: try again later").into_response()
        }
    }
}

/// An error that no handler made, such as a path that is not UTF-8, in the form of the others.
fn with_body(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || response.extensions().get::<Told>().is_some() {
        return response;
    }
    let (kind, detail) = match status {
        StatusCode::NOT_FOUND => (ErrorKind::InvalidRequestPath, "no such endpoint"),
        StatusCode::METHOD_NOT_ALLOWED => (
            ErrorKind::MethodNotAllowed,
            "this endpoint has no such method",
        ),
        StatusCode::PAYLOAD_TOO_LARGE => (
            ErrorKind::PayloadTooLarge,
            "the body is larger than this endpoint takes",
        ),
        status if status.is_client_error() => (
            ErrorKind::InvalidRequest,
            "the path, the query or the body cannot be read",
        ),
        _ => (ErrorKind::Internal, "the request failed"),
    };
    let mut refusal = Refusal::new(kind, detail).into_response();
    if let Some(allow) = response.headers().get(header::ALLOW) {
        refusal.headers_mut().insert(header::ALLOW, allow.clone());
    }
    refusal
}

/// Lets a client in as often as the configuration says.
pub(super) async fn limit(
    State(broker): State<Arc<Broker>>,
    request: Request,
    next: Next,
) -> Response {
    match client(&broker, &request).map_or(Ok(()), |client| admit(&broker, client)) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// The same for what is for administrators, who are not counted: for whoever turns out to be none. A
/// token that is none costs its signature, so nobody looks at one while its address has asked too
/// often.
pub(super) async fn limit_refused(
    State(broker): State<Arc<Broker>>,
    request: Request,
    next: Next,
) -> Response {
    let client = client(&broker, &request);
    let now = Instant::now();
    if let Some(seconds) = client.and_then(|client| broker.limiter.look_stranger(client, now).err())
    {
        return too_many(seconds).into_response();
    }
    let response = next.run(request).await;
    let told = response.extensions().get::<Told>();
    let stranger = told.is_some_and(|told| told.kind == ErrorKind::AdminAuthAccess);
    match client.filter(|_| stranger) {
        Some(client) => match broker.limiter.admit_stranger(client, Instant::now()) {
            Ok(()) => response,
            Err(seconds) => too_many(seconds).into_response(),
        },
        None => response,
    }
}

fn client(broker: &Broker, request: &Request) -> Option<IpAddr> {
    let Peer(peer) = request.extensions().get::<Peer>()?;
    Some(broker.limiter.client(*peer, request.headers()))
}

/// Whose share of a room a request takes: nobody's where the client is many.
pub(super) fn whose(broker: &Broker, request: &Request) -> Option<IpAddr> {
    client(broker, request).and_then(|client| broker.limiter.whose(client))
}

fn admit(broker: &Broker, client: IpAddr) -> Result<(), Refusal> {
    let admitted = broker.limiter.admit(client, Instant::now());
    admitted.map_err(too_many)
}

fn too_many(seconds: u64) -> Refusal {
    let detail = format!("too many requests of one address: try again in {seconds} s");
    Refusal::new(ErrorKind::TooManyRequests, detail).retry_after(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_is_found_in_a_path_and_in_a_query_and_nowhere_else() {
        for (uri, expected) in [
            ("/kbs/v0/record?subject=%00", true),
            ("/kbs/v0/explain/%00", true),
            ("/kbs/v0/reference-value/a%00b?x", true),
            ("/kbs/v0/explain/%2500", false),
            ("/kbs/v0/explain/%0", false),
            ("/kbs/v0/record?subject=%0a0", false),
            ("*", false),
        ] {
            assert_eq!(has_zero(&uri.parse().unwrap()), expected, "{uri}");
        }
    }

    #[test]
    fn what_another_may_read_otherwise_is_not_looked_at() {
        let with = |headers: &[(&str, &str)]| {
            let mut request = http::Request::get("/");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            unfit(&request.body(axum::body::Body::empty()).unwrap()).is_some()
        };
        let (coding, host) = ("transfer-encoding", "host");
        assert!(!with(&[(host, "a"), (coding, "Chunked")]) && !with(&[]));
        assert!(with(&[(host, "a"), (host, "a")]));
        assert!(with(&[(coding, "gzip, chunked")]));
        assert!(with(&[(coding, "gzip"), (coding, "chunked")]));
    }

    #[test]
    fn what_anybody_may_have_as_often_as_they_like_is_no_line_of_the_log() {
        assert!(is_common(Some("/healthz"), StatusCode::OK));
        assert!(is_common(
            Some("/kbs/v0/auth"),
            StatusCode::TOO_MANY_REQUESTS
        ));
        assert!(!is_common(Some("/kbs/v0/auth"), StatusCode::OK));
        assert!(!is_common(None, StatusCode::NOT_FOUND));
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_with_a_ticket() {
        let answer = answer(async { panic!("a secret") }).await;
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let told = answer.extensions().get::<Told>().unwrap();
        assert_eq!(told.kind, ErrorKind::Internal);
        assert!(!told.ticket.is_empty() && !told.detail.contains("secret"));
    }

    #[tokio::test]
    async fn an_error_that_no_handler_made_has_the_body_of_the_others() {
        let bare = async { (StatusCode::BAD_REQUEST, "not ours").into_response() };
        let answer = answer(bare).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        let told = answer.extensions().get::<Told>().unwrap();
        assert_eq!(told.kind, ErrorKind::InvalidRequest);
    }
}
