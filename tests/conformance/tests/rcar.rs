//! Our guest's client against our real broker: each is the other's conformance test.
//!
//! The broker is the program that `make build` leaves, with TLS and its own keys; nothing is shared
//! with it but the wire.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Result;
use attestation_agent::{
    AttestError, Attester, Broker, BrokerConfig, BrokerError, ResourceUri, Secret,
    attester::SampleAttester,
};
use evidence::{
    Tee,
    init_data::{Algorithm, InitData, InitDataDigest},
};
use serde_json::Value;
use support::{State, broker::Broker as Kbs};
use transport::TcpDial;

const SECRET: &[u8] = &[0x5a; 32];

fn uri(text: &str) -> ResourceUri {
    text.parse().unwrap()
}

fn init_data(policy: &str) -> InitData {
    let data = BTreeMap::from([("policy.rego".to_owned(), policy.to_owned())]);
    InitData::build(Algorithm::Sha384, data).unwrap()
}

/// A guest that was sent init-data, and whose launch bound a digest.
fn guest(kbs: &Kbs, sent: Option<&InitData>, bound: Option<InitDataDigest>) -> Broker {
    let config = BrokerConfig::new(kbs.url(), Some(kbs.root_pem().to_owned()));
    let attester = Arc::new(SampleAttester::new(bound));
    Broker::new(&config, Arc::new(TcpDial), attester, sent).unwrap()
}

/// A broker with one secret, and the state that it lives in.
fn kbs() -> Result<(State, Kbs)> {
    let state = State::new()?;
    let kbs = Kbs::start(&state)?;
    kbs.put("default/key/1", &state.file("secret", SECRET)?)?;
    Ok((state, kbs))
}

/// The error of a secret; a secret itself cannot be printed.
fn error(outcome: Result<Secret, BrokerError>) -> BrokerError {
    match outcome {
        Ok(_) => panic!("a secret came"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pinned_guest_gets_the_secret_and_another_gets_a_ticket() -> Result<()> {
    let (_state, kbs) = kbs()?;
    let good = init_data("package agent_policy\n");
    kbs.release_only_to(&good.digest().hex())?;

    let broker = guest(&kbs, Some(&good), Some(good.digest()));
    let secret = broker.resource(&uri("kbs:///default/key/1")).await?;
    assert_eq!(secret.expose(), SECRET);
    let again = broker
        .resource(&uri("kbs+resource:///default/key/1"))
        .await?;
    assert_eq!(again.expose(), SECRET);
    assert_eq!(broker.attestation().unwrap().number, 1);

    let other = init_data("package agent_policy\ndefault ExecProcessRequest := true\n");
    let denied = guest(&kbs, Some(&other), Some(other.digest()));
    let denied = error(denied.resource(&uri("kbs:///default/key/1")).await);
    assert!(matches!(denied, BrokerError::Denied { .. }), "{denied}");
    let explained = kbs.explain(denied.ticket().unwrap())?;
    for digest in [good.digest(), other.digest()] {
        assert!(explained.contains(&digest.hex()), "{explained}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn init_data_that_the_launch_did_not_bind_opens_nothing() -> Result<()> {
    let (_state, kbs) = kbs()?;
    let good = init_data("package agent_policy\n");
    let swapped = init_data("package agent_policy\ndefault ExecProcessRequest := true\n");
    kbs.release_only_to(&good.digest().hex())?;
    let attempt = async |bound| {
        let broker = guest(&kbs, Some(&good), bound);
        error(broker.resource(&uri("kbs:///default/key/1")).await)
    };
    let rejected = attempt(Some(swapped.digest())).await;
    assert!(
        matches!(rejected, BrokerError::Rejected { .. }),
        "{rejected}"
    );
    // A peer's sample evidence binds none; what was only sent is no claim.
    let denied = attempt(None).await;
    assert!(matches!(denied, BrokerError::Denied { .. }), "{denied}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_does_not_have_is_not_found() -> Result<()> {
    let (_state, kbs) = kbs()?;
    let good = init_data("package agent_policy\n");
    kbs.release_only_to(&good.digest().hex())?;
    let broker = guest(&kbs, Some(&good), Some(good.digest()));
    let missing = error(broker.resource(&uri("kbs:///default/key/2")).await);
    assert!(matches!(missing, BrokerError::NotFound { .. }), "{missing}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_the_broker_does_not_accept_is_refused() -> Result<()> {
    /// Says that it is hardware, and has sample evidence.
    struct Pretends(SampleAttester);
    impl Attester for Pretends {
        fn kind(&self) -> Tee {
            Tee::Snp
        }
        fn report(&self, report_data: &[u8]) -> Result<Value, AttestError> {
            self.0.report(report_data)
        }
        fn launch_bound(&self) -> Result<Vec<u8>, AttestError> {
            self.0.launch_bound()
        }
    }
    let (_state, kbs) = kbs()?;
    let config = BrokerConfig::new(kbs.url(), Some(kbs.root_pem().to_owned()));
    let attester = Arc::new(Pretends(SampleAttester::new(None)));
    let broker = Broker::new(&config, Arc::new(TcpDial), attester, None)?;
    let refused = error(broker.resource(&uri("kbs:///default/key/1")).await);
    assert!(matches!(refused, BrokerError::Refused { .. }), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_brokers_certificate_is_not_trusted() -> Result<()> {
    let (_state, real) = kbs()?;
    let (_other_state, other) = kbs()?;
    let config = BrokerConfig::new(other.url(), Some(real.root_pem().to_owned()));
    let attester = Arc::new(SampleAttester::new(None));
    let broker = Broker::new(&config, Arc::new(TcpDial), attester, None)?;
    let untrusted = error(broker.resource(&uri("kbs:///default/key/1")).await);
    assert!(
        matches!(untrusted, BrokerError::Untrusted { .. }),
        "{untrusted}"
    );
    Ok(())
}
