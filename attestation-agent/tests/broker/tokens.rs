//! A token that the broker takes no more, or that ends soon, is renewed: once, and before anybody waits for it.

use std::{
    future::ready,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use attestation_agent::BrokerError;

use crate::script::Reply;
use crate::{error, pair, uri};

#[tokio::test]
async fn a_token_that_is_no_longer_taken_is_renewed_once() {
    let (script, broker) = pair().await;
    let stale = Reply::error(401, "TokenVerifierError", None);
    script.says("resource", [stale.clone()]);
    assert!(broker.resource(&uri()).await.is_ok());
    assert_eq!((script.count("attest"), script.count("resource")), (2, 2));
    assert_eq!(broker.attestation().unwrap().number, 2);
    script.says("resource", vec![stale; 5]);
    let error = error(broker.resource(&uri()).await);
    assert!(matches!(error, BrokerError::Denied { .. }), "{error}");
    assert_eq!((script.count("attest"), script.count("resource")), (3, 4));
}

#[tokio::test]
async fn the_token_of_a_guest_that_changed_is_not_used_again() {
    let (script, broker) = pair().await;
    broker.attest().await.unwrap();
    assert_eq!(broker.change(ready(Err(1))).await, Err(1));
    assert!(broker.resource(&uri()).await.is_ok());
    assert_eq!(script.count("attest"), 1);
    broker.change(ready(Ok::<_, ()>(()))).await.unwrap();
    assert!(broker.resource(&uri()).await.is_ok());
    assert_eq!((script.count("attest"), script.count("resource")), (2, 2));
}

#[tokio::test]
async fn a_token_is_renewed_before_its_end() {
    let (script, broker) = pair().await;
    script.token_seconds.store(1, Ordering::SeqCst);
    broker.attest().await.unwrap();
    assert_eq!(broker.attest().await.unwrap().number, 1);
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(broker.resource(&uri()).await.is_ok());
    assert_eq!(script.count("attest"), 2);
}

#[tokio::test]
async fn a_token_in_use_is_renewed_before_anybody_waits_for_it() {
    let (script, broker) = pair().await;
    let broker = Arc::new(broker);
    tokio::spawn(broker.keep_fresh());
    script.token_seconds.store(2, Ordering::SeqCst);
    assert!(broker.resource(&uri()).await.is_ok());
    while script.count("attest") < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Nobody used the second, and so there is no third.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(script.count("attest"), 2);
    let before = Arc::downgrade(&broker);
    drop(broker);
    assert!(before.upgrade().is_none());
}
