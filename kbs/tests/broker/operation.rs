//! What an operator does beside administration: watches a broker, renews its certificate, limits its
//! clients, and ends it.

use crate::deployment;

use std::{fs, time::Duration};

use deployment::{Deployment, Guest, SECRET, fetch};
use http::{Method, StatusCode};
use kbs_protocol::ErrorKind;
use rcgen::{CertificateParams, KeyPair};
use transport::{Client, ClientConfig, PlainHttp, Roots, TcpDial, bytes_capped};

const ALLOW_ALL: &str = "package policy\nallow := true\n";

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn eventually(holds: impl AsyncFn() -> bool) {
    for _ in 0..150 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it never came true");
}

/// What a port without TLS answers.
async fn plain(url: String) -> Result<(StatusCode, String), transport::Error> {
    let config = ClientConfig {
        plain_http: PlainHttp::Allow,
        ..ClientConfig::new(Roots::web())
    };
    let client = Client::new(std::sync::Arc::new(TcpDial), config).unwrap();
    let request = http::Request::get(url).body(bytes::Bytes::new()).unwrap();
    let response = client.send(request).await?;
    let status = response.status();
    let body = bytes_capped(response.into_body(), 1 << 20).await?;
    Ok((status, text(&body)))
}

fn monitor(deployment: &Deployment) -> String {
    let log = deployment.log();
    let line = log
        .lines()
        .find(|line| line.contains("\"metrics\""))
        .unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    format!("http://{}", line["fields"]["address"].as_str().unwrap())
}

fn with_metrics(config: &str) -> String {
    format!("metrics_listen = \"127.0.0.1:0\"\n{config}")
}

#[tokio::test]
async fn every_error_has_a_ticket_that_the_log_has_too() {
    let deployment = Deployment::start(&["sample"]);
    for (method, path) in [
        (Method::GET, "auth"),
        (Method::POST, "auth"),
        (Method::POST, "attest"),
        (Method::GET, "resource/a/b/c"),
        (Method::GET, "resource/a/b/c%ff"),
        (Method::GET, "resource/a/b/c?%ff=%ff"),
        (Method::PATCH, "resource/a/b/c"),
        (Method::GET, "record"),
        (Method::GET, "nowhere"),
        (Method::GET, "/nowhere"),
    ] {
        let answer = deployment.ask(method, path, &[], "x").await;
        let (kind, error) = answer.refusal();
        assert_ne!(kind, ErrorKind::Internal, "{path}");
        let ticket = error.ticket.unwrap();
        let log = deployment.log();
        let line = log.lines().find(|line| line.contains(&ticket)).unwrap();
        assert!(line.contains(kind.name()), "{line}");
    }
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let deployment = Deployment::start(&["sample"]);
    for _ in 0..20 {
        for (path, kind) in [
            ("auth", ErrorKind::PayloadTooLarge),
            ("resource/a/b/c", ErrorKind::AdminAuthAccess),
            ("nowhere", ErrorKind::InvalidRequestPath),
        ] {
            let large = vec![b'x'; 6 << 20];
            let answer = deployment.ask(Method::POST, path, &[], large).await;
            assert_eq!(answer.refusal().0, kind);
        }
    }
}

#[tokio::test]
async fn metrics_are_on_a_port_of_their_own_and_name_no_resource() {
    let deployment = Deployment::start_with(&["sample"], |config| with_metrics(&config));
    let secret = deployment.write("secret", SECRET);
    deployment.own(&["resource", "set", "treasure/island/map", "--file", &secret]);
    let policy = deployment.write("policy.rego", ALLOW_ALL);
    deployment.own(&["policy", "set", "--file", &policy]);
    let token = Guest::challenged(&deployment, None)
        .await
        .token(&deployment)
        .await;
    fetch(&deployment, &token, "treasure/island/map").await;
    fetch(&deployment, &token, "treasure/island/none").await;
    let url = monitor(&deployment);
    let (status, told) = plain(format!("{url}/metrics")).await.unwrap();
    assert_eq!(status, StatusCode::OK);
    for line in [
        "kbs_build_info{version=",
        "kbs_http_requests_total{method=\"post\",path=\"/kbs/v0/auth\",status=\"200\"} 1",
        "kbs_auth_requests_total 1",
        "kbs_attestation_requests_total 1",
        "kbs_attestation_successes_total{tee_type=\"sample\"} 1",
        "kbs_policy_evaluations_total 2",
        "kbs_resource_reads_total 1",
        "kbs_resource_writes_total 1",
        "kbs_errors_total{type=\"ResourceNotFound\"} 1",
        "kbs_record_queue_entries 0",
    ] {
        assert!(told.contains(line), "{line} is not in {told}");
    }
    assert!(!told.contains("treasure"), "{told}");
    let end = told
        .lines()
        .find_map(|line| line.strip_prefix("kbs_tls_certificate_end_timestamp_seconds "));
    assert!(end.unwrap().parse::<i64>().unwrap() > 1_700_000_000);
    assert_eq!(
        plain(format!("{url}/readyz")).await.unwrap().0,
        StatusCode::OK
    );
    let api = deployment.ask(Method::GET, "/metrics", &[], "").await;
    assert_eq!(api.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_broker_says_that_it_is_not_ready_before_it_stops_listening() {
    let mut deployment = Deployment::start_with(&["sample"], |config| {
        with_metrics(&config.replace("drain_seconds = 2", "drain_seconds = 4"))
    });
    let url = monitor(&deployment);
    let ready = deployment.ask(Method::GET, "/readyz", &[], "").await;
    assert_eq!(ready.status, StatusCode::OK);
    deployment.terminate();
    eventually(async || {
        let ready = plain(format!("{url}/readyz")).await.unwrap();
        ready.0 == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    let (kind, error) = deployment
        .ask(Method::GET, "/readyz", &[], "")
        .await
        .refusal();
    assert_eq!(kind, ErrorKind::NotReady);
    assert!(error.detail.contains("told to stop"), "{}", error.detail);
    // Who did not hear of it is served all the same.
    Guest::challenged(&deployment, None)
        .await
        .token(&deployment)
        .await;
    assert!(deployment.wait().success());
}

#[tokio::test]
async fn one_address_has_its_burst_and_is_told_when_to_come_again() {
    let deployment = Deployment::start_with(&["sample"], |config| {
        config
            .replace("requests_per_second = 200", "requests_per_second = 1")
            .replace("burst = 2000", "burst = 3")
            .replace("exempt_loopback = true", "exempt_loopback = false")
    });
    let mut refused = None;
    for _ in 0..20 {
        let answer = deployment.ask(Method::POST, "auth", &[], "{}").await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            refused = Some(answer);
            break;
        }
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    }
    let refused = refused.unwrap();
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.refusal().0, ErrorKind::TooManyRequests);
    // Administration is not counted.
    deployment.own(&["resource", "list"]);
}

#[tokio::test]
async fn a_new_certificate_is_shown_and_a_broken_one_is_not() {
    let deployment = Deployment::start(&["sample"]);
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let pem = CertificateParams::new(names)
        .unwrap()
        .self_signed(&key)
        .unwrap()
        .pem();
    let trusts_new = async || {
        let config = ClientConfig::new(Roots::pinned(&pem).unwrap());
        let client = Client::new(std::sync::Arc::new(TcpDial), config).unwrap();
        let request = http::Request::get(format!("{}/healthz", deployment.url));
        let request = request.body(bytes::Bytes::new()).unwrap();
        client.send(request).await.is_ok()
    };
    assert!(!trusts_new().await);
    fs::write(deployment.path("server.pem"), "nothing").unwrap();
    eventually(async || deployment.log().contains("the old one stays")).await;
    let old = deployment.ask(Method::GET, "/healthz", &[], "").await;
    assert_eq!(old.status, StatusCode::OK);
    fs::write(deployment.path("server.pem"), &pem).unwrap();
    fs::write(deployment.path("server.key"), key.serialize_pem()).unwrap();
    eventually(trusts_new).await;
}

#[test]
fn logs_are_json_or_text_as_the_configuration_says() {
    for (format, begins) in [("json", "{"), ("text", "20")] {
        let deployment = Deployment::start_with(&["sample"], |config| {
            config.replace("format = \"json\"", &format!("format = \"{format}\""))
        });
        let log = deployment.log();
        assert!(log.lines().all(|line| line.starts_with(begins)), "{log}");
    }
}
