//! The first secret comes with the token from a broker that takes its name with the evidence.

use std::sync::{Arc, atomic::Ordering};

use attestation_agent::{Broker, BrokerError};
use serde_json::{Value, json};

use crate::script::{Reply, SECRET, Script};
use crate::{error, pair, uri};

async fn taking() -> (Arc<Script>, Broker) {
    let (script, broker) = pair().await;
    script.takes_resource.store(true, Ordering::SeqCst);
    (script, broker)
}

/// What the last evidence was sent with.
fn asked(script: &Script) -> Value {
    let bodies = script.bodies.lock().unwrap();
    bodies.last().unwrap()["cloister-resource"].clone()
}

#[tokio::test]
async fn the_first_secret_has_no_request_of_its_own() {
    let (script, broker) = taking().await;
    let first = broker.resource(&uri()).await.ok().unwrap();
    assert_eq!(first.expose(), SECRET);
    assert_eq!(asked(&script), "default/key/1");
    assert_eq!((script.count("attest"), script.count("resource")), (1, 0));
    assert!(broker.resource(&uri()).await.is_ok());
    assert_eq!((script.count("attest"), script.count("resource")), (1, 1));
}

#[tokio::test]
async fn who_wants_no_secret_names_none_and_who_is_not_asked_gives_none() {
    let (script, broker) = taking().await;
    broker.token().await.unwrap();
    assert_eq!(asked(&script), json!(null));
    assert!(broker.resource(&uri()).await.is_ok());
    assert_eq!((script.count("attest"), script.count("resource")), (1, 1));
    let (script, broker) = pair().await;
    assert!(broker.resource(&uri()).await.is_ok());
    assert_eq!(asked(&script), json!(null));
    assert_eq!((script.count("attest"), script.count("resource")), (1, 1));
}

#[tokio::test]
async fn a_refusal_beside_the_token_is_that_of_the_secret_alone() {
    let (script, broker) = taking().await;
    script.says("beside", [Reply::error(403, "PolicyDeny", Some("T-17"))]);
    let denied = error(broker.resource(&uri()).await);
    assert!(matches!(denied, BrokerError::Denied { .. }), "{denied}");
    assert_eq!(denied.ticket(), Some("T-17"));
    assert_eq!((script.count("attest"), script.count("resource")), (1, 0));
    // The guest is attested as before.
    assert!(broker.resource(&uri()).await.is_ok());
    assert_eq!((script.count("attest"), script.count("resource")), (1, 1));

    let (script, broker) = taking().await;
    script.says("beside", [Reply::error(404, "ResourceNotFound", None)]);
    let missing = error(broker.resource(&uri()).await);
    assert!(matches!(missing, BrokerError::NotFound { .. }), "{missing}");
    assert_eq!(script.count("resource"), 0);
}

#[tokio::test]
async fn a_broker_that_is_busy_with_the_secret_alone_is_asked_for_it_again() {
    let (script, broker) = taking().await;
    script.says("beside", [Reply::error(503, "NotReady", None)]);
    assert!(broker.resource(&uri()).await.is_ok());
    assert_eq!((script.count("attest"), script.count("resource")), (1, 1));
}
