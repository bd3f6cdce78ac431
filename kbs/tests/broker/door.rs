//! What strangers can do to a broker before it knows who they are: nothing that others feel.

use crate::deployment;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use deployment::{Deployment, Guest, SECRET, counted, fetch, owner::Owner, without_tls};
use http::{Method, StatusCode, header};
use kbs_protocol::ErrorKind;
use sqlx::{AnyConnection, Connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ALLOW_ALL: &str = "package policy\nallow := true\n";
const PATH: &str = "a/b/c";

/// A broker that releases one secret to every guest.
fn generous() -> Deployment {
    let deployment = Deployment::start(&["sample"]);
    let secret = deployment.write("secret", SECRET);
    deployment.own(&["resource", "set", PATH, "--file", &secret]);
    let policy = deployment.write("policy.rego", ALLOW_ALL);
    deployment.own(&["policy", "set", "--file", &policy]);
    deployment
}

/// A broker without TLS.
fn bare() -> Deployment {
    bare_with(|config| config)
}

fn bare_with(change: impl FnOnce(String) -> String) -> Deployment {
    Deployment::start_with(&["sample"], |config| without_tls(&change(config)))
}

fn connect(deployment: &Deployment) -> TcpStream {
    let (_, address) = deployment.url.split_once("://").unwrap();
    let stream = TcpStream::connect(address).unwrap();
    let patience = Some(Duration::from_secs(60));
    stream.set_read_timeout(patience).unwrap();
    stream
}

/// Every 100 ms, for at most a minute.
async fn eventually(holds: impl AsyncFn() -> bool) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it never came true");
}

#[test]
fn the_body_of_a_client_without_a_challenge_is_not_waited_for() {
    let deployment = bare();
    let mut stream = connect(&deployment);
    let head = "POST /kbs/v0/attest HTTP/1.1\r\nHost: x\r\nCookie: kbs-session-id=c.no\r\n\
                Content-Length: 4194304\r\nConnection: close\r\n\r\nx";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 64];
    let read = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
}

#[tokio::test]
async fn a_guest_that_stops_sending_is_told_that_it_was_too_slow() {
    let deployment = bare();
    let mut stream = connect(&deployment);
    let head = "POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 2048];
    let read = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn a_client_that_asks_and_never_reads_loses_its_connection() {
    let deployment = bare();
    let mut stream = connect(&deployment);
    let request = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n";
    stream.write_all(request.repeat(2000).as_bytes()).unwrap();
    let ended = || deployment.log().contains("connection ended");
    let waited = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        ended()
    });
    assert!(waited);
    // It is closed, and not only given up.
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let answers = String::from_utf8_lossy(&all)
        .matches("HTTP/1.1 200")
        .count();
    assert!(answers < 2000, "{answers}");
}

#[tokio::test]
async fn an_address_has_its_share_of_connections() {
    let deployment = Deployment::start_with(&["sample"], |config| {
        config
            .replace("connections = 1024", "connections = 3")
            .replace("exempt_loopback = true", "exempt_loopback = false")
    });
    let asks = async || {
        let request = http::Request::get(format!("{}/healthz", deployment.url));
        let request = request.body(bytes::Bytes::new()).unwrap();
        deployment.client().send(request).await.is_ok()
    };
    assert!(asks().await);
    let held: Vec<TcpStream> = (0..3).map(|_| connect(&deployment)).collect();
    assert!(!asks().await);
    drop(held);
    eventually(asks).await;
}

#[tokio::test]
async fn whatever_a_stranger_asks_is_counted_and_an_administrator_is_not() {
    let deployment = Deployment::start_with(&["sample"], |config| {
        config
            .replace("requests_per_second = 200", "requests_per_second = 1")
            .replace("burst = 2000", "burst = 3")
            .replace("exempt_loopback = true", "exempt_loopback = false")
    });
    for (method, path) in [
        (Method::GET, "/openapi.json"),
        (Method::GET, "/.well-known/jwks.json"),
        (Method::GET, "/readyz"),
        (Method::GET, "/nowhere"),
        (Method::PATCH, "record"),
        (Method::GET, "record"),
        (Method::POST, "resource/a/b/c"),
        (Method::HEAD, "resource/a/b/c"),
        (Method::POST, "attest"),
    ] {
        let mut refused = false;
        for _ in 0..20 {
            let answer = deployment.ask(method.clone(), path, &[], "").await;
            refused |= answer.status == StatusCode::TOO_MANY_REQUESTS;
        }
        assert!(refused, "{method} {path}");
    }
    // Nobody looks at a token while its address has asked too often.
    eventually(async || deployment.owner(&["resource", "list"]).status.success()).await;
    for _ in 0..5 {
        deployment.own(&["resource", "list"]);
        let alive = deployment.ask(Method::GET, "/healthz", &[], "").await;
        assert_eq!(alive.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_cookie_that_does_not_hold_hides_no_token_and_no_challenge() {
    let deployment = generous();
    let foreign = Deployment::start(&["sample"]);
    let guest = Guest::challenged(&deployment, None).await;
    let stale = Guest::challenged(&foreign, None).await;
    let ours = guest.attest(&deployment).await;
    let token = serde_json::from_slice::<kbs_protocol::TokenResponse>(&ours.body).unwrap();
    let bearer = format!("Bearer {}", token.token);
    let foreign = stale.attest(&foreign).await.cookie();
    let path = format!("resource/{PATH}");
    let both = format!("{foreign}; {}", ours.cookie());
    for headers in [
        vec![("cookie", foreign.as_str()), ("authorization", &bearer)],
        vec![("cookie", both.as_str())],
        vec![("cookie", foreign.as_str()), ("cookie", &ours.cookie())],
        vec![("cookie", "kbs-session-id=x"), ("authorization", &bearer)],
    ] {
        let answer = deployment.ask(Method::GET, &path, &headers, "").await;
        assert_eq!(answer.status, StatusCode::OK, "{headers:?}");
    }
    let headers = [("cookie", foreign.as_str())];
    let refused = deployment.ask(Method::GET, &path, &headers, "").await;
    assert_eq!(refused.refusal().0, ErrorKind::TokenVerifierError);

    let body = serde_json::to_vec(&guest.request).unwrap();
    let both = format!("{}; {}", stale.cookie, guest.cookie);
    let headers = [("cookie", both.as_str())];
    let answer = deployment.ask(Method::POST, "attest", &headers, body).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
}

#[tokio::test]
async fn head_releases_nothing_and_leaves_nothing_on_the_record() {
    let deployment = generous();
    let guest = Guest::challenged(&deployment, None).await;
    let bearer = format!("Bearer {}", guest.token(&deployment).await);
    let headers = [("authorization", bearer.as_str())];
    let path = format!("resource/{PATH}");
    let answer = deployment.ask(Method::HEAD, &path, &headers, "").await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.headers[header::ALLOW], "GET,POST,DELETE");
    let releases = deployment.own(&["record", "list", "--kind", "release"]);
    assert!(!releases.contains(PATH), "{releases}");
}

#[tokio::test]
async fn a_zero_byte_is_refused_before_the_store_sees_it() {
    let owner = Owner::start();
    for path in [
        "record?subject=%00",
        "record?resource=a%00b",
        "explain/%00",
        "reference-value?prefix=%00",
        "reference-value?after=%00",
        "reference-value-history/a%00b",
        "attestation-policy/a%00_cpu",
        "resource/a/b/c%00",
    ] {
        let (kind, error) = owner.ask(Method::GET, path, "").await.refusal();
        assert_eq!(kind, ErrorKind::InvalidRequest, "{path}");
        assert!(error.detail.contains("zero byte"), "{}", error.detail);
    }
    let rego = format!("{ALLOW_ALL}# \0\n");
    let policy = BASE64_URL_SAFE_NO_PAD.encode(rego);
    for (path, id) in [("resource-policy", ""), ("attestation-policy", "x_cpu")] {
        let mut body = serde_json::json!({"policy": policy});
        if !id.is_empty() {
            body["policy_id"] = id.into();
        }
        let answer = owner.ask(Method::POST, path, body.to_string()).await;
        let (kind, error) = answer.refusal();
        assert_eq!(kind, ErrorKind::InvalidRequest, "{path}");
        assert!(error.detail.contains("zero byte"), "{}", error.detail);
    }
}

#[tokio::test]
async fn a_broker_that_cannot_write_is_not_ready_until_it_can() {
    let deployment = generous();
    let ready = async || {
        let answer = deployment.ask(Method::GET, "/readyz", &[], "").await;
        answer.status == StatusCode::OK
    };
    let token = Guest::challenged(&deployment, None)
        .await
        .token(&deployment)
        .await;
    assert!(ready().await);
    sqlx::any::install_default_drivers();
    let file = deployment.path("kbs.sqlite");
    let url = format!("sqlite://{}", file.to_str().unwrap());
    let mut database = AnyConnection::connect(&url).await.unwrap();
    for full in [
        "CREATE TRIGGER full_record BEFORE INSERT ON record \
         BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
        "CREATE TRIGGER full_probe BEFORE INSERT ON kbs_probe \
         BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
    ] {
        sqlx::raw_sql(full).execute(&mut database).await.unwrap();
    }
    let (kind, _) = fetch(&deployment, &token, PATH).await.refusal();
    assert_eq!(kind, ErrorKind::StorageError);
    for _ in 0..2 {
        let answer = deployment.ask(Method::GET, "/readyz", &[], "").await;
        let (kind, error) = answer.refusal();
        assert_eq!(kind, ErrorKind::NotReady);
        assert!(
            error.detail.contains("cannot be written"),
            "{}",
            error.detail
        );
    }
    for empty in ["DROP TRIGGER full_record", "DROP TRIGGER full_probe"] {
        sqlx::raw_sql(empty).execute(&mut database).await.unwrap();
    }
    eventually(ready).await;
    assert_eq!(
        fetch(&deployment, &token, PATH).await.status,
        StatusCode::OK
    );
}

/// Sends a request, and reads the status of its answer and nothing more.
async fn status_of(url: &str, request: &str) -> Option<(String, tokio::net::TcpStream)> {
    let (_, address) = url.split_once("://").unwrap();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address.parse().unwrap()).await.unwrap();
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut status = [0; "HTTP/1.1 200".len()];
    stream.read_exact(&mut status).await.ok()?;
    let status = String::from_utf8_lossy(&status);
    Some((status.strip_prefix("HTTP/1.1 ")?.to_owned(), stream))
}

fn get(path: &str, header: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n")
}

#[tokio::test]
async fn answers_that_nobody_reads_hold_the_share_of_their_address_and_no_more() {
    let deployment = generous();
    let large = deployment.write("large", vec![b'x'; 2 << 20]);
    deployment.own(&["resource", "set", "a/b/large", "--file", &large]);
    let guest = Guest::challenged(&deployment, None).await;
    let bearer = format!("Authorization: Bearer {}", guest.token(&deployment).await);
    // A broker beside it, without TLS, to which loopback is a client as others are.
    let config = std::fs::read_to_string(deployment.path("kbs.toml")).unwrap();
    std::fs::write(deployment.path("kbs.toml"), without_tls(&counted(&config))).unwrap();
    let replica = deployment.replica();
    let large = get("/kbs/v0/resource/a/b/large", &bearer);
    let small = get(&format!("/kbs/v0/resource/{PATH}"), &bearer);

    let mut unread = Vec::new();
    loop {
        let (status, stream) = status_of(&replica.url, &large).await.unwrap();
        if status == "503" {
            break;
        }
        assert_eq!(status, "200");
        unread.push(stream);
        assert!(unread.len() < 20, "its share has no end");
    }
    assert!(unread.len() > 3, "{}", unread.len());
    assert_eq!(status_of(&replica.url, &small).await.unwrap().0, "200");
    drop(unread);
    eventually(async || status_of(&replica.url, &large).await.unwrap().0 == "200").await;
}

#[tokio::test]
async fn heads_of_one_address_have_their_share_of_room_and_the_longest_tokens_fit() {
    let deployment = bare_with(|config| counted(&config));
    let token = "x".repeat(kbs_protocol::limit::TOKEN_BYTES);
    let both = format!("Authorization: Bearer {token}\r\nCookie: kbs-session-id=t.{token}");
    let asks = async || {
        let status = status_of(&deployment.url, &get("/healthz", &both)).await;
        status.is_some_and(|(status, _)| status == "200")
    };
    assert!(asks().await);

    let head = format!(
        "GET /healthz HTTP/1.1\r\nHost: x\r\nX: {}",
        "a".repeat(230_000)
    );
    let mut unfinished = Vec::new();
    let none_left = || deployment.log().contains("no room for so large a head");
    for _ in 0..200 {
        let mut stream = connect(&deployment);
        // It may be closed before all of it is sent.
        drop(stream.write_all(head.as_bytes()));
        unfinished.push(stream);
        if none_left() {
            break;
        }
    }
    eventually(async || none_left()).await;
    let alive = status_of(&deployment.url, &get("/healthz", "X: y")).await;
    assert_eq!(alive.unwrap().0, "200");
    drop(unfinished);
    eventually(asks).await;
}

#[tokio::test]
async fn a_pipe_in_place_of_a_file_stops_nothing() {
    let deployment = generous();
    for name in ["server.pem", "store.key"] {
        let file = deployment.path(name);
        std::fs::remove_file(&file).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&file).status();
        assert!(made.unwrap().success());
    }
    let told = |text: &str| deployment.log().contains(text);
    eventually(async || told("the old one stays") && told("the store's key cannot be read again"))
        .await;
    let token = Guest::challenged(&deployment, None)
        .await
        .token(&deployment)
        .await;
    assert_eq!(
        fetch(&deployment, &token, PATH).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_session_is_of_the_folder_that_it_comes_from() {
    let deployment = Deployment::start(&["sample"]);
    let body = serde_json::to_vec(&kbs_protocol::AuthRequest::new("sample")).unwrap();
    let answer = deployment.ask(Method::POST, "auth", &[], body).await;
    let cookie = answer.headers[header::SET_COOKIE].to_str().unwrap();
    assert!(!cookie.to_ascii_lowercase().contains("path"), "{cookie}");
}
