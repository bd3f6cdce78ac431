//! Traces, as a collector receives them.

use crate::deployment;

use std::sync::{Arc, Mutex};

use axum::{Json, Router, routing::post};
use deployment::{Deployment, SECRET};
use http::Method;
use serde_json::Value;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector, and the spans that it got.
async fn collector() -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let spans = Arc::new(Mutex::new(Vec::new()));
    let got = Arc::clone(&spans);
    let take = async move |Json(message): Json<Value>| {
        let resource = &message["resourceSpans"][0];
        let name = &resource["resource"]["attributes"][0]["value"]["stringValue"];
        assert_eq!(name, "kbs");
        let new = resource["scopeSpans"][0]["spans"].as_array().unwrap();
        got.lock().unwrap().extend(new.iter().cloned());
        Json(serde_json::json!({}))
    };
    let app = Router::new().route("/v1/traces", post(take));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, spans)
}

fn attribute<'a>(span: &'a Value, key: &str) -> Option<&'a Value> {
    let all = span["attributes"].as_array().unwrap();
    let found = all.iter().find(|one| one["key"] == key)?;
    Some(&found["value"])
}

async fn spans(names: bool) -> (Vec<Value>, String) {
    let (url, spans) = collector().await;
    let mut deployment = Deployment::start_with(&["sample"], |config| {
        let endpoint = format!("[telemetry]\notlp_endpoint = \"{url}\"");
        config.replace("[telemetry]", &endpoint).replace(
            "resource_names = false",
            &format!("resource_names = {names}"),
        )
    });
    let secret = deployment.write("secret", SECRET);
    deployment.own(&["resource", "set", "treasure/island/map", "--file", &secret]);
    let traced = format!("00-{TRACE}-{PARENT}-01");
    let headers = [("traceparent", traced.as_str())];
    let refused = deployment
        .ask(Method::GET, "resource/treasure/island/map", &headers, "")
        .await;
    let unwanted = format!("00-{}-{PARENT}-00", "a".repeat(32));
    let headers = [("traceparent", unwanted.as_str())];
    deployment.ask(Method::GET, "/healthz", &headers, "").await;
    let pid = deployment.pid().to_string();
    let told = std::process::Command::new("kill")
        .args(["-TERM", &pid])
        .status()
        .unwrap();
    assert!(told.success());
    assert!(deployment.wait().success());
    let ticket = refused.refusal().1.ticket.unwrap();
    let spans = spans.lock().unwrap().clone();
    (spans, ticket)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_span_in_its_callers_trace_with_its_ticket_and_no_name_of_a_resource() {
    let (spans, ticket) = spans(false).await;
    let route = "/kbs/v0/resource/{repository}/{kind}/{tag}";
    let span = spans.iter().find(|span| span["traceId"] == TRACE).unwrap();
    assert_eq!(span["parentSpanId"], PARENT);
    assert_eq!(span["name"], format!("GET {route}"));
    assert_eq!(attribute(span, "http.route").unwrap()["stringValue"], route);
    assert_eq!(
        attribute(span, "http.response.status_code").unwrap()["intValue"],
        "401"
    );
    assert_eq!(
        attribute(span, "error.type").unwrap()["stringValue"],
        "TokenNotFound"
    );
    assert_eq!(
        attribute(span, "kbs.ticket").unwrap()["stringValue"],
        ticket
    );
    let text = serde_json::to_string(&spans).unwrap();
    assert!(!text.contains("treasure"), "{text}");
    assert!(!text.contains(&"a".repeat(32)), "a trace that nobody wants");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_resources_are_in_spans_where_the_configuration_wants_them() {
    let (spans, _) = spans(true).await;
    let text = serde_json::to_string(&spans).unwrap().replace(SECRET, "");
    assert!(
        text.contains("/kbs/v0/resource/treasure/island/map"),
        "{text}"
    );
}
