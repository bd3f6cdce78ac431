//! CoCo's REST paths on the loopback, and `/cdh/unseal`, which it has not.
//!
//! Programs ask here, and no web pages: a browser in a container would send what a page of strangers wants, by a name
//! that they made lead to this address.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, ORIGIN};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpStream;

use super::{ApiError, Client, Refused};
use crate::sealed::SEALED_BYTES;
use crate::{AttestError, BrokerError, HubError};

/// How long a caller may take for the head of a request, and between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take for the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long somebody who is refused may take to hear it.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of a head: evidence over a caller's data has them in its query.
const HEAD_BYTES: usize = 16 * 1024;
/// Bytes of an event as JSON.
const EVENT_BYTES: usize = 64 * 1024;

type Answer = Response<Full<Bytes>>;

/// Serves one connection to its end.
pub(super) async fn serve(stream: TcpStream, client: Client) {
    let service = service_fn(|request| {
        let client = client.clone();
        async move {
            let answer = route(&client, request).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(Fault::answer))
        }
    });
    let served = http(HEAD_TIMEOUT).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a workload's connection ended");
    }
}

/// Tells somebody who is refused at the one request that is read. Then the connection ends.
pub(super) async fn refuse(stream: TcpStream, refused: &Refused) {
    let service = service_fn(|_: Request<Incoming>| {
        let answer = Fault::from(ApiError::from(refused.clone())).answer();
        ready(Ok::<_, Infallible>(answer))
    });
    let mut http = http(REFUSAL_TIMEOUT);
    let told = http
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, told).await;
}

fn http(head_timeout: Duration) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(HEAD_BYTES);
    http
}

/// CoCo's form of a token, without the pod's private key.
pub(super) fn token_json(token: &str) -> String {
    json!({"token": token}).to_string()
}

/// A request that is answered by a status other than 200.
enum Fault {
    /// It is for another host, or from a web page.
    Foreign,
    Path,
    Method,
    Api(ApiError),
}

impl From<ApiError> for Fault {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

/// An event, as CoCo's clients send it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    domain: String,
    operation: String,
    content: String,
}

/// Refuses what names another host than this one, and what a browser says to come from a page.
fn check_foreign<B>(request: &Request<B>) -> Result<(), Fault> {
    let headers = request.headers();
    let mut hosts = headers.get_all(HOST).iter();
    let is_here = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().is_ok_and(is_loopback),
        _ => false,
    };
    let target = request.uri().authority();
    let is_here = is_here && target.is_none_or(|target| is_loopback(target.as_str()));
    match is_here && !headers.contains_key(ORIGIN) {
        true => Ok(()),
        false => Err(Fault::Foreign),
    }
}

/// Whether a host, with or without a port, is this one by a name that nobody else gives away.
fn is_loopback(host: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) => name,
        _ => host,
    };
    matches!(name, "127.0.0.1" | "[::1]") || name.eq_ignore_ascii_case("localhost")
}

async fn route(client: &Client, request: Request<Incoming>) -> Result<Answer, Fault> {
    check_foreign(&request)?;
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let expect = |method: Method| match *request.method() == method {
        true => Ok(()),
        false => Err(Fault::Method),
    };
    if let Some(resource) = path.strip_prefix("/cdh/resource/") {
        expect(Method::GET)?;
        let secret = client.resource(resource).await?;
        return Ok(octets(secret.expose()));
    }
    match path.as_str() {
        "/cdh/unseal" => {
            expect(Method::POST)?;
            let sealed = body(request, SEALED_BYTES).await?;
            Ok(octets(client.unseal(&sealed).await?.expose()))
        }
        "/aa/token" => {
            expect(Method::GET)?;
            let kind = parameter(&query, "token_type").ok_or_else(|| missing("token_type"))?;
            Ok(json_answer(token_json(&client.token(&kind).await?)))
        }
        "/aa/evidence" => {
            expect(Method::GET)?;
            let evidence = client.evidence(runtime_data(&query)?).await?;
            Ok(json_answer(evidence.to_string()))
        }
        // A guest has one TEE, and no devices beside it.
        "/aa/additional-evidence" => {
            expect(Method::GET)?;
            runtime_data(&query)?;
            Ok(octets(&[]))
        }
        "/aa/aael" => {
            expect(Method::POST)?;
            measure(client, request).await
        }
        "/info" => {
            expect(Method::GET)?;
            let info = client.info();
            Ok(json_answer(
                json!({
                    "version": info.version,
                    "tee": info.tee,
                    "additional_tees": [],
                    "feature": "all",
                })
                .to_string(),
            ))
        }
        _ => Err(Fault::Path),
    }
}

async fn measure(client: &Client, request: Request<Incoming>) -> Result<Answer, Fault> {
    let event = body(request, EVENT_BYTES).await?;
    let event: Event = serde_json::from_slice(&event).map_err(|_| {
        let why = "the body is not JSON with domain, operation and content";
        ApiError::Invalid(why.to_owned())
    })?;
    let measured = client
        .measure(&event.domain, &event.operation, &event.content, None)
        .await?;
    Ok(json_answer(match measured {
        Some(()) => json!({"success": "true"}).to_string(),
        None => {
            let message = "this guest has no log that is measured";
            json!({"success": "false", "message": message}).to_string()
        }
    }))
}

fn runtime_data(query: &str) -> Result<Vec<u8>, ApiError> {
    let text = parameter(query, "runtime_data").ok_or_else(|| missing("runtime_data"))?;
    match parameter(query, "encoding").as_deref() {
        None => Ok(text.into_bytes()),
        Some("base64") => BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| {
            let why = "runtime_data is not base64url without padding";
            ApiError::Invalid(why.to_owned())
        }),
        Some(_) => Err(ApiError::Invalid("encoding is not `base64`".to_owned())),
    }
}

fn parameter(query: &str, name: &str) -> Option<String> {
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

fn missing(name: &str) -> ApiError {
    ApiError::Invalid(format!("the parameter {name} is missing"))
}

async fn body(request: Request<Incoming>, most: usize) -> Result<Bytes, ApiError> {
    let whole = Limited::new(request.into_body(), most).collect();
    let bad = |why: String| ApiError::Invalid(format!("the body: {why}"));
    match tokio::time::timeout(BODY_TIMEOUT, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(bad(format!("it ends early, or has more than {most} bytes"))),
        Err(_) => Err(bad("it did not come in time".to_owned())),
    }
}

impl Fault {
    fn answer(self) -> Answer {
        match self {
            Self::Foreign => text(
                StatusCode::FORBIDDEN,
                "ask 127.0.0.1, localhost or [::1] by `Host`, and without `Origin`",
            ),
            Self::Path => text(StatusCode::NOT_FOUND, "URL NOT FOUND"),
            Self::Method => text(StatusCode::METHOD_NOT_ALLOWED, "METHOD NOT ALLOWED"),
            Self::Api(error) => text(status(&error), &error.to_string()),
        }
    }
}

fn status(error: &ApiError) -> StatusCode {
    match error {
        ApiError::Refused(_) => StatusCode::FORBIDDEN,
        ApiError::Busy => StatusCode::TOO_MANY_REQUESTS,
        ApiError::Invalid(_) => StatusCode::BAD_REQUEST,
        ApiError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
        ApiError::VerificationKey => StatusCode::BAD_GATEWAY,
        ApiError::Measure(_) | ApiError::Mount(_) => StatusCode::INTERNAL_SERVER_ERROR,
        ApiError::Hub(error) => match error.broker() {
            Some(BrokerError::Denied { .. } | BrokerError::Rejected { .. }) => {
                StatusCode::FORBIDDEN
            }
            Some(BrokerError::NotFound { .. }) => StatusCode::NOT_FOUND,
            Some(_) => StatusCode::BAD_GATEWAY,
            None => of_hub(error),
        },
    }
}

fn of_hub(error: &HubError) -> StatusCode {
    match error {
        HubError::NoBroker | HubError::NoTee => StatusCode::NOT_IMPLEMENTED,
        HubError::Evidence(AttestError::ReportData(_)) => StatusCode::BAD_REQUEST,
        HubError::Sealed(_) | HubError::Name(_) | HubError::Packet(_) => StatusCode::BAD_REQUEST,
        HubError::Broker(_) | HubError::VerificationKey { .. } | HubError::Evidence(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

fn octets(bytes: &[u8]) -> Answer {
    answer(StatusCode::OK, "application/octet-stream", bytes)
}

#[expect(clippy::needless_pass_by_value, reason = "what is given is done with")]
fn json_answer(json: String) -> Answer {
    answer(StatusCode::OK, "application/json", json.as_bytes())
}

fn text(status: StatusCode, text: &str) -> Answer {
    answer(status, "text/plain; charset=utf-8", text.as_bytes())
}

fn answer(status: StatusCode, kind: &'static str, body: &[u8]) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(body)));
    *answer.status_mut() = status;
    let kind = http::HeaderValue::from_static(kind);
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_for_this_host_and_from_no_page() {
        let asked = |target: &str, headers: &[(&str, &str)]| {
            let mut request = Request::builder().uri(target);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            check_foreign(&request.body(()).unwrap()).is_ok()
        };
        for host in [
            "127.0.0.1",
            "127.0.0.1:8006",
            "localhost",
            "LocalHost:1",
            "[::1]",
            "[::1]:8006",
        ] {
            assert!(asked("/info", &[("host", host)]), "{host}");
            assert!(!asked("/info", &[("host", host), ("origin", "null")]));
        }
        for host in [
            "",
            "evil.test",
            "evil.test:8006",
            "127.0.0.1.evil.test",
            "127.0.0.1:",
            "127.0.0.1:80:80",
            "::1",
            "evil.test@127.0.0.1",
        ] {
            assert!(!asked("/info", &[("host", host)]), "{host}");
        }
        assert!(!asked("/info", &[]));
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert!(!asked("/info", &twice));
        assert!(!asked("http://evil.test/info", &twice[..1]));
        assert!(asked("http://localhost:8006/info", &twice[..1]));
    }
}
