//! A broker that cannot be reached: what is said of it, and how soon.

use std::{io, sync::Arc, time::Duration};

use async_trait::async_trait;
use attestation_agent::{Broker, BrokerConfig, BrokerError, Step, attester::SampleAttester};
use transport::{BoxedStream, Dial};

use crate::script::{Identity, guest};
use crate::{error, uri};

#[tokio::test]
async fn a_host_that_does_not_relay_is_named_at_once() {
    struct Refuses;
    #[async_trait]
    impl Dial for Refuses {
        async fn dial(&self, _host: &str, _port: u16) -> io::Result<BoxedStream> {
            Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "host-not-allowed: x",
            ))
        }
    }
    let config = BrokerConfig::new("https://kbs.test", None);
    let attester = Arc::new(SampleAttester::new(None));
    let broker = Broker::new(&config, Arc::new(Refuses), attester, None).unwrap();
    let error = error(broker.resource(&uri()).await);
    assert!(matches!(error, BrokerError::NotRelayed { .. }), "{error}");
    assert!(error.to_string().contains("host-not-allowed"));
}

#[tokio::test]
async fn a_broker_that_is_down_is_unreachable() {
    let broker = guest(1, &Identity::new().pem, None);
    let error = error(broker.resource(&uri()).await);
    assert!(
        matches!(
            error,
            BrokerError::Unreachable {
                step: Step::Auth,
                ..
            }
        ),
        "{error}"
    );
}

/// A way to the broker that always ends in the same error.
struct Fails(io::ErrorKind);

#[async_trait]
impl Dial for Fails {
    async fn dial(&self, _host: &str, _port: u16) -> io::Result<BoxedStream> {
        Err(io::Error::new(self.0, "the host's relay says why"))
    }
}

/// The error with the usual deadlines, and how long it took on the test's own clock.
async fn failure(kind: io::ErrorKind) -> (BrokerError, Duration) {
    let config = BrokerConfig::new("https://kbs.test", None);
    let attester = Arc::new(SampleAttester::new(None));
    let broker = Broker::new(&config, Arc::new(Fails(kind)), attester, None).unwrap();
    let since = tokio::time::Instant::now();
    let error = error(broker.resource(&uri()).await);
    (error, since.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_is_told_within_three_seconds() {
    let (error, took) = failure(io::ErrorKind::ConnectionRefused).await;
    assert!(matches!(error, BrokerError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("the host's relay says why"));
    // A broker that is only restarted is waited for.
    let limits = Duration::from_millis(500)..Duration::from_secs(3);
    assert!(limits.contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_time_out_and_a_busy_relay_have_the_whole_deadline() {
    for kind in [io::ErrorKind::TimedOut, io::ErrorKind::ResourceBusy] {
        let (error, took) = failure(kind).await;
        assert!(matches!(error, BrokerError::Unreachable { .. }), "{error}");
        assert!(took > BrokerConfig::DEADLINE / 2, "{took:?}");
        assert!(took <= BrokerConfig::DEADLINE, "{took:?}");
    }
}
